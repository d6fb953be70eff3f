// Adding memories: what is pasted, or files, with their progress.

import { call, stream } from "./api.js";
import { button, dialog, element, field, fill, options, problem } from "./dom.js";
import { ACCEPTED, batches, filesOf, hasFiles, memoriesOf } from "./files.js";
import { counted } from "./format.js";
import { parsed } from "./memory.js";
import { lastStatus, place } from "./place.js";
import { toast } from "./toast.js";

const LISTED = 8;

/**
 * @param {() => Promise<void>} changed is called when something was added
 * @param {DataTransfer} [dropped] files to begin with
 */
export function openAdd(changed, dropped) {
  const body = element("div", { class: "add" });
  const shown = dialog("Add memories", { class: "wide" }, body);
  const finish = async (message) => {
    shown.close();
    toast(message);
    await changed();
  };
  const take = async (given) => {
    const found = await memoriesOf(await filesOf(given), lastStatus());
    fill(body, review(found, start));
  };
  const start = (memories) => runImport(body, memories, finish, changed);
  fill(body, dropZone(shown, take), element("p", { class: "or" }, "or"), pasteForm(finish));
  if (dropped) take(dropped).catch((error) => body.prepend(problem(error)));
}

function dropZone(shown, take) {
  const told = element("div");
  const safely = (given) => take(given).catch((error) => fill(told, problem(error)));
  const input = element("input", {
    type: "file",
    multiple: true,
    accept: ACCEPTED,
    hidden: true,
    onchange: () => safely(input.files),
  });
  const zone = element(
    "div",
    { class: "drop" },
    element(
      "p",
      {},
      "Drop files or folders here, or ",
      button("choose files", () => input.click()),
    ),
    element("p", { class: "about" }, "Text, Markdown, and JSON Lines (one memory a line)."),
    input,
    told,
  );
  shown.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    zone.classList.add("over");
  });
  shown.addEventListener("dragleave", () => zone.classList.remove("over"));
  shown.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    safely(event.dataTransfer);
  });
  return zone;
}

function pasteForm(finish) {
  const text = element("textarea", { rows: 7, required: true, placeholder: "Paste or write a text", dir: "auto" });
  const title = element("input", { dir: "auto" });
  const date = element("input", { placeholder: "2026-03-01" });
  const id = element("input", { spellcheck: "false" });
  const metadata = element("textarea", {
    rows: 3,
    class: "code",
    spellcheck: "false",
    placeholder: '{"project": "amber"}',
  });
  const told = element("div");
  const add = element("button", { class: "primary" }, "Add");

  async function submit(event) {
    event.preventDefault();
    add.disabled = true;
    try {
      const given = { id: id.value.trim() || undefined, date: date.value.trim() || undefined };
      const body = {
        text: text.value,
        title: title.value.trim(),
        metadata: parsed(metadata.value),
        ...given,
        ...place(),
      };
      const memory = await call("POST", "/v1/memories", { body });
      location.hash = `#/memories/${encodeURIComponent(memory.id)}`;
      await finish("Added. The next question sees it.");
    } catch (error) {
      add.disabled = false;
      fill(told, problem(error));
    }
  }

  queueMicrotask(() => text.focus());
  return element(
    "form",
    { onsubmit: submit },
    field("Text", text),
    field("Title", title),
    options(
      "Date, id, metadata",
      element(
        "div",
        { class: "grid" },
        field("Date", date, "Left empty: now."),
        field("Id", id, "One of this id is replaced. Left empty: made from the text."),
      ),
      field("Metadata", metadata, "A JSON object; filters can use it."),
    ),
    told,
    element("div", { class: "actions" }, add),
  );
}

/** What files hold, before it is added. */
function review({ memories, skipped }, start) {
  const names = memories
    .slice(0, LISTED)
    .map((memory) => element("li", { dir: "auto" }, memory.title || memory.id, " ", element("code", {}, memory.id)));
  if (memories.length > LISTED) names.push(element("li", {}, `and ${memories.length - LISTED} more`));
  const reasons = skipped
    .slice(0, LISTED)
    .map(({ source, reason }) => element("li", {}, element("code", {}, source), `: ${reason}`));
  if (skipped.length > LISTED) reasons.push(element("li", {}, `and ${skipped.length - LISTED} more`));
  const add = button(`Add ${counted(memories.length, "memory", "memories")}`, () => start(memories), {
    class: "primary",
  });
  queueMicrotask(() => add.focus());
  return element(
    "div",
    { class: "review" },
    element(
      "p",
      {},
      memories.length
        ? `Found ${counted(memories.length, "memory", "memories")}. Those with an id that is there already are replaced.`
        : "Nothing to add was found.",
    ),
    element("ul", {}, ...names),
    skipped.length > 0 && element("p", {}, `Passed over: ${counted(skipped.length, "file or line", "files or lines")}`),
    element("ul", { class: "skipped" }, ...reasons),
    memories.length > 0 && element("div", { class: "actions" }, add),
  );
}

/** Send memories in batches, and show how far the server is. Closing the dialog does not stop it; the button does. */
async function runImport(body, memories, finish, changed) {
  const bar = element("progress", { max: memories.length, value: 0, "aria-label": "Added" });
  const told = element("p", { role: "status" }, `0 of ${memories.length}`);
  const where = place();
  const sum = { done: 0, added: 0, updated: 0, unchanged: 0 };
  let stopped = false;
  let running = null;
  const stop = button("Stop", () => {
    stopped = true;
    const params = { id: running };
    if (running) call("DELETE", "/v1/imports/{id}", { params }).catch((error) => body.append(problem(error)));
  });
  fill(body, bar, told, element("div", { class: "actions" }, stop));
  try {
    for (const batch of batches(memories)) {
      if (stopped) break;
      const job = await call("POST", "/v1/imports", { body: { memories: batch, ...where } });
      running = job.id;
      const last = await watched(job, (state) => {
        bar.value = sum.done + state.done;
        told.textContent = `${sum.done + state.done} of ${memories.length}`;
      });
      for (const name of Object.keys(sum)) sum[name] += last[name];
      if (last.status === "failed") throw new Error(last.error);
    }
    const kinds = Object.entries({ added: sum.added, replaced: sum.updated, unchanged: sum.unchanged }).filter(
      ([, number]) => number,
    );
    await finish(
      `${stopped ? "Stopped: " : ""}${kinds.map(([kind, number]) => `${number} ${kind}`).join(", ") || "nothing added"}`,
    );
  } catch (error) {
    fill(
      body,
      problem(error),
      element("p", { class: "about" }, `${sum.done} of ${memories.length} were added before.`),
    );
    await changed();
  }
}

/** Watch an import until it has ended; its last state. */
async function watched(job, tell) {
  let state = job;
  for await (state of stream("GET", "/v1/imports/{id}/events", { params: { id: job.id } })) tell(state);
  return state;
}
