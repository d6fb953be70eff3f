// A memory's text with the passage shaded that an answer was written with.

import { call } from "./api.js";
import { aroundClosest } from "./closest.js";
import { dialog, element, fill, problem } from "./dom.js";
import { cut, day, nameOf } from "./format.js";

/** The text of a memory. */
export function documentText(...parts) {
  return element("div", { class: "document", dir: "auto" }, ...parts);
}

/** A piece of evidence with the sentence marked that is closest to the question, if any is. */
export function markedPassage({ text, title }, question) {
  const found = aroundClosest(text, question, title);
  return found ? [found.before, element("mark", {}, found.inside), found.after] : [text];
}

/** Show where a piece of evidence stands in its memory. */
export async function openReader(evidence, place, question) {
  const passage = () => element("span", { class: "shaded" }, ...markedPassage(evidence, question));
  const body = element(
    "div",
    { class: "reader", role: "region", "aria-label": "Text", tabindex: 0 },
    element("p", { class: "quiet-text" }, "Opening…"),
  );
  const link = element(
    "a",
    { href: `#/memories/${encodeURIComponent(evidence.id)}`, onclick: () => shown.close() },
    "Open in Memories",
  );
  const about = element("p", { class: "about" }, element("code", {}, evidence.id), ` · ${day(evidence.date)} · `, link);
  const shown = dialog(nameOf(evidence), { class: "wide" }, about, body);
  try {
    const memory = await call("GET", "/v1/memories/{id}", { params: { id: evidence.id }, query: place });
    const [before, inside, after] = cut(memory.text, evidence.span);
    if (inside !== evidence.text)
      fill(body, note("This memory has been changed since. The model read this:"), documentText(passage()));
    else if (before || after)
      fill(body, note("Shaded is what the model read."), documentText(before, passage(), after));
    else fill(body, note("The model read all of it."), documentText(...markedPassage(evidence, question)));
  } catch (error) {
    if (error.code === "memory_not_found") {
      link.remove();
      fill(body, note("This memory has been deleted since. The model read this:"), documentText(passage()));
    } else fill(body, problem(error));
  }
  const marked = body.querySelector("mark");
  if (marked) body.querySelector(".note").append(" The sentence closest to the question by its words is marked.");
  (marked ?? body.querySelector(".shaded"))?.scrollIntoView({ block: "center" });
}

function note(text) {
  return element("p", { class: "note" }, text);
}
