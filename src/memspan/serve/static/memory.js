// One memory: read, edit, delete (and take that back).

import { call } from "./api.js";
import { button, element, field, fill, problem } from "./dom.js";
import { day, nameOf, shortened } from "./format.js";
import { mayWrite, place } from "./place.js";
import { documentText } from "./reader.js";
import { toast } from "./toast.js";

/**
 * @param {Element} root
 * @param {() => Promise<void>} changed is called after every change
 */
export function memoryView(root, changed) {
  let shown = null;
  let deleted = []; // what the notice that stands would bring back

  async function show(id) {
    shown = id;
    if (id === null) return fill(root, element("p", { class: "hint" }, "Choose a memory to read it."));
    try {
      const memory = await call("GET", "/v1/memories/{id}", { params: { id }, query: place() });
      if (shown === id) read(memory);
    } catch (error) {
      if (shown === id) fill(root, back(), problem(error));
    }
  }

  function read(memory) {
    const heading = element("h2", { tabindex: -1, dir: "auto" }, nameOf(memory));
    const actions = element(
      "div",
      { class: "actions" },
      button("Edit", () => edit(memory)),
      button("Delete", () => remove(memory), { class: "danger" }),
    );
    const metadata = Object.entries(memory.metadata).flatMap(([name, value]) => [
      element("dt", {}, name),
      element("dd", { dir: "auto" }, typeof value === "string" ? value : JSON.stringify(value)),
    ]);
    const about = element(
      "dl",
      { class: "facts" },
      element("dt", {}, "Id"),
      element("dd", {}, element("code", {}, memory.id)),
    );
    if (memory.date) about.append(element("dt", {}, "Date"), element("dd", {}, day(memory.date)));
    about.append(element("dt", {}, "Added"), element("dd", {}, day(memory.added_at)), ...metadata);
    fill(root, back(), element("header", {}, heading, mayWrite() && actions), about, documentText(memory.text));
    return heading;
  }

  function edit(memory) {
    const title = element("input", { value: memory.title, dir: "auto" });
    const date = element("input", { value: memory.date ?? "", placeholder: "2026-03-01" });
    const text = element("textarea", { rows: 14, required: true, dir: "auto" });
    const metadata = element("textarea", { rows: 4, class: "code", spellcheck: "false" });
    text.value = memory.text;
    metadata.value = JSON.stringify(memory.metadata, null, 2);
    const told = element("div");
    const save = element("button", { class: "primary" }, "Save");
    const cancel = () => read(memory).focus();

    async function submit(event) {
      event.preventDefault();
      save.disabled = true;
      try {
        const changes = difference(memory, {
          title: title.value,
          date: date.value.trim() || null,
          text: text.value,
          metadata: parsed(metadata.value),
        });
        const now = Object.keys(changes).length
          ? await call("PATCH", "/v1/memories/{id}", { params: { id: memory.id }, body: { ...changes, ...place() } })
          : memory;
        read(now).focus();
        toast("Saved");
        await changed();
      } catch (error) {
        save.disabled = false;
        fill(told, problem(error));
      }
    }

    const form = element(
      "form",
      { class: "edit", onsubmit: submit },
      field("Title", title),
      field("Text", text),
      field("Date", date, "A day or a moment. A date that is left empty stays as it was."),
      field("Metadata", metadata, "A JSON object; filters can use it."),
      told,
      element("div", { class: "actions" }, save, button("Cancel", cancel)),
    );
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    fill(root, back(), element("h2", {}, "Edit"), form);
    text.focus();
  }

  async function remove(memory) {
    const where = place();
    try {
      await call("DELETE", "/v1/memories/{id}", { params: { id: memory.id }, query: where });
    } catch (error) {
      root.querySelector(".problem")?.remove();
      return root.append(problem(error));
    }
    location.hash = "#/memories";
    const all = [...deleted, { memory, where }];
    const named = all.length > 1 ? `${all.length} memories` : `“${shortened(nameOf(memory), 60)}”`;
    toast(`Deleted ${named}`, { label: "Undo", run: () => restore(all) }, () => (deleted = []));
    deleted = all;
    await changed();
  }

  /** Add memories again as they were. One without a date keeps the moment it was added at as its date. */
  async function restore(all) {
    const left = [...all];
    try {
      for (const { memory, where } of all) {
        const { id, title, text, metadata, date, added_at, expires, pinned } = memory;
        const body = { id, title, text, metadata, date: date ?? added_at, expires, pinned, ...where };
        await call("POST", "/v1/memories", { body });
        left.shift();
      }
      toast("Restored");
    } catch (error) {
      toast(`Not restored: ${error.message}`, { label: "Try again", run: () => restore(left) });
    }
    await changed();
  }

  return { show };
}

function back() {
  return element("a", { class: "back", href: "#/memories" }, "← All memories");
}

function difference(memory, edited) {
  const changed = Object.entries(edited).filter(
    ([name, value]) => JSON.stringify(value) !== JSON.stringify(memory[name]),
  );
  const changes = Object.fromEntries(changed.filter(([, value]) => value !== null));
  if (changes.metadata) changes.metadata = mergePatch(memory.metadata, changes.metadata);
  return changes;
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** What JSON Merge Patch (RFC 7396) makes one object of another with. */
function mergePatch(before, after) {
  const removed = Object.keys(before).filter((name) => !(name in after));
  const set = Object.entries(after).map(([name, value]) => [
    name,
    isObject(value) && isObject(before[name]) ? mergePatch(before[name], value) : value,
  ]);
  return Object.fromEntries([...removed.map((name) => [name, null]), ...set]);
}

/** Metadata as they were typed. */
export function parsed(text) {
  if (!text.trim()) return {};
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    // said below
  }
  if (value === null || typeof value !== "object" || Array.isArray(value))
    throw new Error('Metadata are a JSON object, as {"project": "amber"}.');
  return value;
}
