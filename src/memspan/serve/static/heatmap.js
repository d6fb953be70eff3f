// MSA layers by documents: how strongly each layer routed to each. A grid that the arrow keys walk through.

import { button, element } from "./dom.js";
import { counted, score } from "./format.js";

const SHOWN = 20;
const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/**
 * @param {{layer: number, document_ids: number[], scores: number[]}[]} layers
 * @param {Map<number, string>} names of documents
 * @param {Set<number>} read documents whose text was put before the model
 */
export function heatMap(layers, names, read) {
  const documents = columns(layers, read);
  const made = element("div", { class: "heat" });
  const draw = (most) => {
    made.replaceChildren(...grid(layers, documents.slice(0, most), names, read));
    if (documents.length > most)
      made.append(button(`Show all ${documents.length} documents`, () => draw(documents.length), { class: "quiet" }));
  };
  draw(SHOWN);
  return made;
}

/** Documents in the order they are shown: what was read, then what most layers routed to, then the best scores. */
function columns(layers, read) {
  const found = new Map([...read].map((id) => [id, [0, 0]]));
  for (const { document_ids: ids, scores } of layers) {
    ids.forEach((id, index) => {
      const [num, sum] = found.get(id) ?? [0, 0];
      found.set(id, [num + 1, sum + scores[index]]);
    });
  }
  const order = ([a, [numA, sumA]], [b, [numB, sumB]]) =>
    read.has(b) - read.has(a) || numB - numA || sumB - sumA || a - b;
  return [...found].sort(order).map(([id]) => id);
}

function grid(layers, documents, names, read) {
  const scores = layers.flatMap((layer) => layer.scores);
  const [least, most] = [Math.min(...scores), Math.max(...scores)];
  const share = (value) => (most > least ? (value - least) / (most - least) : 1);
  const nameOf = (id) => names.get(id) ?? `document ${id}`;

  const head = element("tr", {}, element("th", { scope: "col" }, "Layer"));
  for (const id of documents) {
    const kind = { scope: "col", class: read.has(id) ? "read" : null, title: nameOf(id) };
    head.append(element("th", kind, element("span", {}, nameOf(id))));
  }
  const body = layers.map((layer) => {
    const row = element("tr", {}, element("th", { scope: "row" }, layer.layer));
    for (const id of documents) row.append(cell(layer, id, nameOf(id), share));
    return row;
  });
  const table = element(
    "table",
    { role: "grid", "aria-label": "Scores of routing by layer and document" },
    element("thead", {}, head),
    element("tbody", {}, ...body),
  );
  const readout = element(
    "p",
    { class: "readout", "aria-live": "polite" },
    "Point at a square, or walk with the arrow keys.",
  );
  walkable(table, readout);
  const scale = element(
    "div",
    { class: "scale" },
    score(least),
    element("span", { class: "ramp", "aria-hidden": "true" }),
    score(most),
    element("span", { class: "key" }, "Underlined: its text was read"),
  );
  return [element("div", { class: "scroll" }, table), readout, scale];
}

function cell(layer, id, name, share) {
  const rank = layer.document_ids.indexOf(id);
  if (rank < 0)
    return element(
      "td",
      { tabindex: -1, "data-told": `Layer ${layer.layer} did not route to ${name}` },
      element("span", { class: "unseen" }, "none"),
    );
  const value = layer.scores[rank];
  const told = `Layer ${layer.layer} → ${name}: ${score(value)}, place ${rank + 1} of ${counted(layer.document_ids.length, "document")}`;
  const made = element(
    "td",
    { tabindex: -1, class: "routed", "data-told": told },
    element("span", { class: "unseen" }, score(value)),
  );
  made.style.setProperty("--share", `${Math.round(12 + 88 * share(value))}%`);
  return made;
}

/** One cell can be reached by Tab; arrows, Home and End go on from there. */
function walkable(table, readout) {
  const rows = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]);
  const tell = (found) => (readout.textContent = found.dataset.told);
  if (rows[0]?.[0]) rows[0][0].tabIndex = 0;
  table.addEventListener("pointerover", (event) => event.target.closest("td") && tell(event.target.closest("td")));
  table.addEventListener("focusin", (event) => event.target.closest("td") && tell(event.target.closest("td")));
  table.addEventListener("keydown", (event) => {
    const at = event.target.closest("td");
    const row = rows.findIndex((cells) => cells.includes(at));
    if (row < 0) return;
    const column = rows[row].indexOf(at);
    const last = rows[row].length - 1;
    const [down, right] =
      MOVES[event.key] ?? (event.key === "Home" ? [0, -last] : event.key === "End" ? [0, last] : [0, 0]);
    const next = rows[row + down]?.[Math.max(0, Math.min(last, column + right))];
    if (!next || next === at) return;
    event.preventDefault();
    at.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
