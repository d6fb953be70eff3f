// The bank browser: memories as a list, one of them beside it.

import { openAdd } from "./add.js";
import { call } from "./api.js";
import { button, element, fill, options, problem } from "./dom.js";
import { openExport } from "./export.js";
import { hasFiles } from "./files.js";
import { filterFields } from "./filter.js";
import { sharedWords } from "./closest.js";
import { counted, day, fit, isWeak, nameOf, shortened, withoutTitle } from "./format.js";
import { memoryView } from "./memory.js";
import { bank, changes, mayWrite, memoriesChanged, place } from "./place.js";

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
  const add = button("Add memories", () => openAdd(memoriesChanged), { class: "primary" });
  const save = button("Export", () => openExport(filter.value()), { class: "quiet" });
  const total = element("p", { class: "about", role: "status" });
  const list = element("ul", { class: "memory-list" });
  const more = button("Show more", () => append(), { class: "quiet", hidden: true });
  const detail = element("div", { class: "detail", role: "region", "aria-label": "Memory", tabindex: 0 });
  const tools = element(
    "div",
    { class: "tools" },
    element("div", { class: "row" }, search, add),
    filters,
    element("div", { class: "row" }, total, save),
  );
  fill(
    root,
    element("h1", { class: "unseen" }, "Memories"),
    element("div", { class: "list-pane" }, tools, list, more),
    detail,
  );
  const shownMemory = memoryView(detail, memoriesChanged);

  let cursor = null;
  let loading = 0; // the latest load; earlier ones that come back late are not shown
  let opened = null;
  let stale = true;
  let listTop = 0; // how far the list was scrolled when a memory took its place, on a phone

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
    const query = search.value.trim();
    const body = { ...place(), query, limit: FOUND, ...filter.value() };
    const passages = (await call("POST", "/v1/memories/search", { body })).data;
    const best = [...new Map(passages.toReversed().map((passage) => [passage.id, passage])).values()].toReversed();
    best.sort((one, other) => passages.indexOf(one) - passages.indexOf(other));
    const highest = Math.max(...best.map((passage) => passage.score));
    const shares = ({ title, text }) => sharedWords(query, `${title}\n${text}`).length > 0;
    const weak = best.filter((passage) => isWeak(passage.score, highest, shares(passage)));
    const good = best.filter((passage) => !weak.includes(passage));
    const told = (passage) =>
      item(passage, [fit(passage.score, highest), day(passage.date)].filter(Boolean).join(" · "));
    const size = `${counted(good.length, "memory", "memories")} found, best first`;
    total.textContent = good.length || !weak.length ? size : "Nothing found that fits well";
    return [...good.map(told), ...(weak.length ? [weaker(weak.map(told))] : [])];
  }

  /** Results that hardly fit, behind a line to open. */
  function weaker(items) {
    const why = "They fit less than half as well as the best, or share no word with the search and have a low score.";
    return element(
      "li",
      { class: "weaker" },
      options(
        counted(items.length, "weak match", "weak matches"),
        element("p", { class: "about" }, why),
        element("ul", {}, ...items),
      ),
    );
  }

  function nothing() {
    if (search.value.trim()) return "Nothing found. Try other words, or fewer.";
    const { where, as_of } = filter.value();
    if (where || as_of) return "No memory matches this filter.";
    return mayWrite() ? "No memories yet. Add some, or drop files here." : "No memories yet.";
  }

  function item(memory, about) {
    const name = nameOf(memory);
    const snippet = memory.title && beginning(withoutTitle(memory.text, memory.title));
    const link = element(
      "a",
      { href: `#/memories/${encodeURIComponent(memory.id)}`, "data-id": memory.id },
      element("strong", { dir: "auto" }, name),
      element("span", { class: "snippet", dir: "auto" }, snippet || memory.id),
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

  let pause = null;
  search.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(load, PAUSE_MS);
  });
  list.addEventListener("keydown", (event) => {
    const links = [...list.querySelectorAll("a")].filter((link) => link.checkVisibility());
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
    openAdd(memoriesChanged, event.dataTransfer);
  });
  changes.addEventListener("status", () => {
    add.hidden = !mayWrite();
    if (stale && bank() && !root.hidden) load();
  });
  changes.addEventListener("place", () => {
    stale = true;
    if (root.hidden) return;
    if (opened !== null) location.hash = "#/memories";
    load();
  });
  changes.addEventListener("memories", () => {
    stale = true;
    if (!root.hidden) load();
  });

  return {
    show(id) {
      if (opened === null) listTop = root.scrollTop;
      opened = id;
      root.classList.toggle("opened", id !== null);
      root.scrollTop = id === null ? listTop : 0;
      shownMemory.show(id);
      markOpened();
      if (stale) load();
    },
  };
}

const beginning = (text) => shortened(text.slice(0, 400).trim().replace(/\s+/g, " "), 140);
