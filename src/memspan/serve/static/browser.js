// The bank browser: memories as a list, one of them beside it.

import { openAdd } from "./add.js";
import { call } from "./api.js";
import { button, element, fill, options, problem } from "./dom.js";
import { hasFiles } from "./files.js";
import { filterFields } from "./filter.js";
import { counted, day, nameOf, score, shortened, withoutTitle } from "./format.js";
import { memoryView } from "./memory.js";
import { bank, changes, mayWrite, place, refresh } from "./place.js";

const PAGE = 30;
const FOUND = 30;
const PAUSE_MS = 250; // after the last key before a search begins

export function browserView(root) {
  const search = element("input", {
    type: "search",
    placeholder: "Search memories",
    "aria-label": "Search memories",
    dir: "auto",
  });
  const filter = filterFields();
  filter.node.append(element("button", {}, "Apply"));
  const filters = options(
    "Filter",
    element("form", { onsubmit: (event) => (event.preventDefault(), load()) }, filter.node),
  );
  const add = button("Add memories", () => openAdd(changed), { class: "primary" });
  const total = element("p", { class: "about", role: "status" });
  const list = element("ul", { class: "memory-list" });
  const more = button("Show more", () => append(), { class: "quiet", hidden: true });
  const detail = element("div", { class: "detail" });
  const tools = element("div", { class: "tools" }, element("div", { class: "row" }, search, add), filters, total);
  fill(root, element("div", { class: "list-pane" }, tools, list, more), detail);
  const shownMemory = memoryView(detail, changed);

  let cursor = null;
  let loading = 0; // the latest load; earlier ones that come back late are not shown
  let opened = null;
  let stale = true;

  async function load() {
    const mine = ++loading;
    stale = false;
    more.hidden = true;
    list.setAttribute("aria-busy", "true");
    try {
      const items = search.value.trim() ? await found() : await page(null);
      if (mine !== loading) return;
      fill(list, ...items);
      if (!items.length) fill(list, element("li", { class: "empty" }, nothing()));
    } catch (error) {
      if (mine !== loading) return;
      stale = true;
      total.textContent = "";
      fill(list, element("li", {}, problem(error)));
    } finally {
      if (mine === loading) list.setAttribute("aria-busy", "false");
    }
    markOpened();
  }

  async function append() {
    const mine = loading;
    more.disabled = true;
    try {
      const items = await page(cursor);
      if (mine !== loading) return;
      list.append(...items);
      items[0]?.querySelector("a").focus();
    } catch (error) {
      if (mine === loading) list.append(element("li", {}, problem(error)));
    } finally {
      more.disabled = false;
    }
    markOpened();
  }

  async function page(from) {
    const { where, as_of } = filter.value();
    const query = { ...place(), as_of, where: where && JSON.stringify(where), limit: PAGE, cursor: from };
    const answer = await call("GET", "/v1/memories", { query });
    cursor = answer.next_cursor;
    more.hidden = !answer.has_more;
    total.textContent = where || as_of ? "Filtered" : `${counted(bank().memories, "memory", "memories")}, oldest first`;
    return answer.data.map((memory) => item(memory, day(memory.date ?? memory.added_at)));
  }

  async function found() {
    const body = { ...place(), query: search.value.trim(), limit: FOUND, ...filter.value() };
    const passages = (await call("POST", "/v1/memories/search", { body })).data;
    const best = [...new Map(passages.toReversed().map((passage) => [passage.id, passage])).values()].toReversed();
    best.sort((one, other) => passages.indexOf(one) - passages.indexOf(other));
    total.textContent = `${counted(best.length, "memory", "memories")} found, best first`;
    return best.map((passage) => item(passage, `score ${score(passage.score)} · ${day(passage.date)}`));
  }

  function nothing() {
    if (search.value.trim()) return "Nothing found. Try other words, or fewer.";
    const { where, as_of } = filter.value();
    if (where || as_of) return "No memory matches this filter.";
    return mayWrite() ? "No memories yet. Add some, or drop files here." : "No memories yet.";
  }

  function item(memory, about) {
    const name = nameOf(memory);
    const snippet = memory.title ? beginning(withoutTitle(memory.text, memory.title)) : memory.id;
    const link = element(
      "a",
      { href: `#/memories/${encodeURIComponent(memory.id)}`, "data-id": memory.id },
      element("strong", { dir: "auto" }, name),
      element("span", { class: "snippet", dir: "auto" }, snippet),
      element("span", { class: "about" }, about),
    );
    return element("li", {}, link);
  }

  function markOpened() {
    for (const link of list.querySelectorAll("a")) {
      if (link.dataset.id === opened) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  /** Something was added, edited or deleted. */
  async function changed() {
    await refresh();
    stale = true;
    if (!root.hidden) await load();
  }

  let pause = null;
  search.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(load, PAUSE_MS);
  });
  list.addEventListener("keydown", (event) => {
    const links = [...list.querySelectorAll("a")];
    const at = links.indexOf(event.target.closest("a"));
    const next = links[at + ({ ArrowDown: 1, ArrowUp: -1 }[event.key] ?? NaN)];
    if (at < 0 || !next) return;
    event.preventDefault();
    next.focus();
  });
  root.addEventListener("dragover", (event) => {
    if (!hasFiles(event) || !mayWrite()) return;
    event.preventDefault();
    root.classList.add("dropping");
  });
  root.addEventListener("dragleave", (event) => {
    if (!root.contains(event.relatedTarget)) root.classList.remove("dropping");
  });
  root.addEventListener("drop", (event) => {
    root.classList.remove("dropping");
    if (!hasFiles(event) || !mayWrite()) return;
    event.preventDefault();
    openAdd(changed, event.dataTransfer);
  });
  changes.addEventListener("status", () => {
    add.hidden = !mayWrite();
    if (stale && bank() && !root.hidden) load();
  });
  changes.addEventListener("place", () => {
    stale = true;
    if (opened !== null) location.hash = "#/memories";
    if (!root.hidden) load();
  });

  return {
    show(id) {
      opened = id;
      root.classList.toggle("opened", id !== null);
      shownMemory.show(id);
      markOpened();
      if (stale) load();
    },
  };
}

const beginning = (text) => shortened(text.slice(0, 400).trim().replace(/\s+/g, " "), 140);
