// The memory map: memories by source and time, and what a question touched.

import { openAdd } from "./add.js";
import { call } from "./api.js";
import { button, element, field, fill, problem, select } from "./dom.js";
import { count, counted, nameOf, shortened } from "./format.js";
import { grouped } from "./grouping.js";
import { pages } from "./pages.js";
import { bank, changes, mayWrite, memoriesChanged, place } from "./place.js";
import { plot } from "./plot.js";
import { questionsOf } from "./touched.js";

const MOST = 10_000; // memories that are fetched
const LISTED = 50;
const ASKED = 500; // numbers of documents that the server takes at a time

export function mapView(root) {
  const told = element("p", { class: "about", role: "status" });
  const choice = select([]);
  const chosen = field("Show what this question touched", choice);
  const touchedTold = element("p", { class: "about", role: "status" });
  const drawing = element("div", { class: "drawing" });
  const listed = element("section", { class: "listed", "aria-live": "polite" });
  fill(root, element("h1", {}, "Memory map"), told, chosen, touchedTold, drawing, listed);

  let memories = null; // null: to be fetched
  let leaving = new AbortController();
  let newest = null; // the newest question: a new one is shown by itself
  let shown = null; // the question that is shown
  let drawn = 0; // the latest drawing; what comes back late is not shown

  async function load() {
    leaving.abort();
    leaving = new AbortController();
    const { signal } = leaving;
    const found = [];
    fill(drawing);
    fill(listed);
    told.textContent = "Reading…";
    try {
      for await (const page of pages({ ...place(), text: false }, signal)) {
        found.push(...page);
        told.textContent = `${counted(found.length, "memory", "memories")} read…`;
        if (found.length >= MOST) break;
      }
      if (signal.aborted) return;
      memories = found.slice(0, MOST);
    } catch (error) {
      if (signal.aborted) return;
      told.textContent = "";
      return fill(drawing, problem(error));
    }
    await draw();
  }

  async function draw() {
    const mine = ++drawn;
    const asked = questionsOf(place());
    offer(asked);
    const touched = await touchedBy(shown);
    if (mine !== drawn || memories === null) return;
    touchedTold.textContent = touched ? `Its answer was written from ${says(touched)}` : "";
    const map = grouped(memories, columnsHere());
    told.textContent = sizes(map);
    fill(listed);
    if (memories.length) fill(drawing, plot(map, touched, list));
    else fill(drawing, nothing());
  }

  function offer(asked) {
    if (asked[0] !== newest) newest = shown = asked[0];
    const named = asked.map((one, index) => [index, shortened(one.question, 80)]);
    choice.replaceChildren(...select([["", "None"], ...named]).children);
    choice.value = asked.includes(shown) ? asked.indexOf(shown) : "";
    chosen.hidden = !asked.length;
  }

  function sizes({ numSources, columns }) {
    if (!memories.length) return "";
    const sources = counted(numSources, "source");
    const time = columns.length > 1 ? `${columns[0]} to ${columns.at(-1)}` : columns[0];
    const whole = bank().memories;
    const cut = whole > memories.length && memories.length === MOST;
    const size = cut
      ? `The first ${count(MOST)} of ${counted(whole, "memory", "memories")}, as they were added`
      : counted(memories.length, "memory", "memories");
    return `${size}, from ${sources}, ${time}.`;
  }

  /** The memories of a cell, as links. */
  function list(name, found, told) {
    const items = found.slice(0, LISTED).map((memory) => {
      const link = { href: `#/memories/${encodeURIComponent(memory.id)}`, dir: "auto" };
      const how = told(memory) && element("span", { class: "about" }, ` ${told(memory)}`);
      return element("li", {}, element("a", link, nameOf(memory)), how);
    });
    if (found.length > LISTED) items.push(element("li", {}, `and ${count(found.length - LISTED)} more`));
    fill(listed, element("h2", {}, name), element("ul", {}, ...items));
  }

  choice.addEventListener("change", () => {
    shown = questionsOf(place())[choice.value];
    draw();
  });
  matchMedia(NARROW).addEventListener("change", () => !root.hidden && memories && draw());
  for (const event of ["place", "memories"])
    changes.addEventListener(event, () => {
      memories = null;
      if (!root.hidden) load();
    });
  return { show: () => (memories === null || memories.length !== Math.min(MOST, bank()?.memories) ? load() : draw()) };
}

const NARROW = "(max-width: 46rem)";
const columnsHere = () => (matchMedia(NARROW).matches ? 8 : 24);

/** Ids of memories that a question touched: those whose text was read, and those that a layer routed to besides. */
async function touchedBy(asked) {
  if (!asked) return null;
  const seen = new Set();
  try {
    for (let at = 0; at < asked.documents.length; at += ASKED) {
      const query = { ids: asked.documents.slice(at, at + ASKED), bank: asked.bank, namespace: asked.namespace };
      for (const item of (await call("GET", "/v1/documents", { query })).data) seen.add(item.id);
    }
  } catch {
    // Without them the map shows what was read.
  }
  return { read: asked.read, seen: new Set([...seen].filter((id) => !asked.read.has(id))) };
}

function says({ read, seen }) {
  const texts = `the texts of ${counted(read.size, "memory", "memories")}`;
  return seen.size ? `${texts}; the model looked at ${counted(seen.size, "other one", "other ones")}.` : `${texts}.`;
}

function nothing() {
  const add = mayWrite() && button("Add memories", () => openAdd(memoriesChanged), { class: "primary" });
  return element("div", { class: "welcome" }, element("p", {}, "There are no memories here yet."), add);
}
