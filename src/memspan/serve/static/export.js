// Memories as a file: JSON Lines, as `memspan export` writes them and `memspan import` and this page read them.

import { button, dialog, element, fill, problem } from "./dom.js";
import { counted } from "./format.js";
import { pages } from "./pages.js";
import { place } from "./place.js";

/** Write the memories of a scope (`where`, `as_of`) into a file. Closing the dialog stops it. */
export async function openExport({ where, as_of }) {
  const leaving = new AbortController();
  const told = element("p", { role: "status" }, "Reading…");
  const body = element("div", { class: "add" }, told);
  const shown = dialog("Export memories", { class: "small" }, body);
  shown.addEventListener("close", () => leaving.abort());
  const query = { ...place(), where: where && JSON.stringify(where), as_of };
  const lines = [];
  try {
    for await (const page of pages(query, leaving.signal)) {
      lines.push(...page.map((memory) => `${JSON.stringify(exported(memory))}\n`));
      told.textContent = `${counted(lines.length, "memory", "memories")} read…`;
    }
  } catch (error) {
    if (error.name !== "AbortError") fill(body, problem(error));
    return;
  }
  if (!lines.length) return fill(body, element("p", { role: "status" }, "There is nothing to export."));
  const name = `${query.bank}-${query.namespace}.jsonl`;
  told.textContent = `${counted(lines.length, "memory", "memories")}${where || as_of ? " that match the filter" : ""}.`;
  const save = button("Save the file", () => download(name, lines), { class: "primary" });
  body.append(element("div", { class: "actions" }, save));
  save.focus();
}

function exported({ namespace, id, title, text, date, added_at, metadata, expires, pinned }) {
  const retention = { ...(expires !== null && { expires }), ...(pinned && { pinned }) };
  return { namespace, external_id: id, title, text, date: date ?? added_at, metadata, ...retention };
}

function download(name, lines) {
  const address = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
