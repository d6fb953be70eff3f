// The drawing of the memory map: a circle for every source and step of time that holds memories.

import { element, fill, shape } from "./dom.js";
import { counted, shortened } from "./format.js";

const CELL = 30;
const LABELS = 9; // characters of a label of a row on a narrow page; on a wide one twice as many
const AXIS = 26;

/**
 * The drawing with what explains it.
 * @param {object} map of `grouped`
 * @param {{read: Set<string>, seen: Set<string>}|null} touched ids of memories that a question touched
 * @param {(name: string, memories: object[], told: (memory: object) => string) => void} open is called with what
 *     somebody chose, and with what says of a memory how it was touched
 */
export function plot({ rows, columns, cells }, touched, open) {
  const letters = columns.length <= 8 ? LABELS : 2 * LABELS;
  const left = 8 * letters;
  const [width, height] = [left + Math.max(columns.length, 4) * CELL, rows.length * CELL + AXIS];
  const most = Math.max(...cells.map((cell) => cell.memories.length));
  const readout = element("p", { class: "readout" }, "Choose a circle with a click, or with the arrow keys and Enter.");
  const drawn = cells.map((cell) => {
    const found = { ...cell, name: `${rows[cell.row]}, ${columns[cell.column]}`, ...touchedOf(cell, touched) };
    return { ...found, node: circle(found, left, most, readout) };
  });
  const svg = shape(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Memories by source and time" },
    shape("g", { "aria-hidden": "true" }, ...rowLabels(rows, letters, width), ...columnLabels(columns, left, height)),
    ...drawn.map((cell) => cell.node),
  );
  // Not the drawing itself: one that listens to the focus takes it.
  const area = element("div", { class: "scroll" }, svg);
  walkable(area, drawn);
  const choose = (cell) => {
    for (const one of drawn) one.node.setAttribute("aria-pressed", String(one === cell));
    const told = ({ id }) => (touched?.read.has(id) ? "read" : touched?.seen.has(id) ? "looked at" : "");
    const title = `${cell.name}: ${counted(cell.memories.length, "memory", "memories")}`;
    open(title, ordered(cell.memories, touched), told);
  };
  const at = (event) => drawn.find((cell) => cell.node === event.target.closest("[role=button]"));
  area.addEventListener("click", (event) => at(event) && choose(at(event)));
  area.addEventListener("keydown", (event) => {
    if ((event.key !== "Enter" && event.key !== " ") || !at(event)) return;
    event.preventDefault();
    choose(at(event));
  });
  return fill(element("div"), area, readout, touched && legend());
}

function touchedOf({ memories }, touched) {
  const among = (ids) => memories.filter((memory) => ids.has(memory.id)).length;
  return touched ? { read: among(touched.read), seen: among(touched.seen) } : { read: 0, seen: 0 };
}

/** What was touched first. */
function ordered(memories, touched) {
  const rank = ({ id }) => (touched?.read.has(id) ? 0 : touched?.seen.has(id) ? 1 : 2);
  return touched ? memories.toSorted((one, other) => rank(one) - rank(other)) : memories;
}

function circle({ row, column, memories, name, read, seen }, left, most, readout) {
  const [x, y] = [left + (column + 0.5) * CELL, (row + 0.5) * CELL];
  const radius = 4 + 8 * Math.sqrt(memories.length / most);
  const facts = [counted(memories.length, "memory", "memories"), read && `${read} read`, seen && `${seen} looked at`];
  const label = `${name}: ${facts.filter(Boolean).join(", ")}`;
  const kind = read ? "read" : seen ? "seen" : null;
  const tell = () => (readout.textContent = label);
  return shape(
    "g",
    {
      role: "button",
      tabindex: -1,
      "aria-label": label,
      "aria-pressed": "false",
      class: kind,
      onfocus: tell,
      onpointerenter: tell,
    },
    shape("rect", { x: x - CELL / 2, y: y - CELL / 2, width: CELL, height: CELL, rx: 6, class: "target" }),
    shape("circle", { cx: x, cy: y, r: radius }),
    kind && shape("circle", { cx: x, cy: y, r: radius + 2.5, class: "ring" }),
  );
}

function rowLabels(rows, letters, width) {
  return rows.flatMap((name, row) => [
    shape("line", { x1: 0, x2: width, y1: (row + 1) * CELL, y2: (row + 1) * CELL }),
    shape("text", { x: 0, y: (row + 0.5) * CELL, "dominant-baseline": "central" }, shortened(name, letters)),
  ]);
}

/** The first and the last step of time; one alone is named once. */
function columnLabels(columns, left, height) {
  const y = height - 7;
  const first = shape("text", { x: left, y }, columns[0]);
  if (columns.length < 5) return [first];
  return [first, shape("text", { x: left + columns.length * CELL, y, "text-anchor": "end" }, columns.at(-1))];
}

function legend() {
  const item = (kind, label) =>
    element(
      "span",
      { class: "key" },
      shape(
        "svg",
        { width: 22, height: 22, "aria-hidden": "true" },
        shape(
          "g",
          { class: kind },
          shape("circle", { cx: 11, cy: 11, r: 6 }),
          shape("circle", { cx: 11, cy: 11, r: 9, class: "ring" }),
        ),
      ),
      label,
    );
  return element("p", { class: "scale" }, item("read", "its text was read"), item("seen", "looked at"));
}

/** One circle can be reached by Tab; the arrows, Home and End go on from there. */
function walkable(area, cells) {
  if (cells[0]) cells[0].node.setAttribute("tabindex", 0);
  area.addEventListener("keydown", (event) => {
    const at = cells.find((cell) => cell.node === event.target);
    const next = at && neighbour(cells, at, event.key);
    if (!next) return;
    event.preventDefault();
    next.node.focus();
  });
  area.addEventListener("focusin", (event) => {
    const at = event.target.closest("[role=button]");
    if (at) for (const { node } of cells) node.setAttribute("tabindex", node === at ? 0 : -1);
  });
}

function neighbour(cells, at, key) {
  const row = cells.filter((cell) => cell.row === at.row);
  const index = row.indexOf(at);
  if (key === "ArrowRight") return row[index + 1];
  if (key === "ArrowLeft") return row[index - 1];
  if (key === "Home") return row[0];
  if (key === "End") return row.at(-1);
  const step = { ArrowDown: 1, ArrowUp: -1 }[key];
  if (!step) return null;
  // Every row holds something; of the next one, what is nearest in time.
  const next = cells.filter((cell) => cell.row === at.row + step);
  return next.sort((one, other) => Math.abs(one.column - at.column) - Math.abs(other.column - at.column))[0];
}
