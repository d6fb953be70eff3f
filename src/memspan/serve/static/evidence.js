// The passages that were put before the model, under the answer they led to.

import { button, element } from "./dom.js";
import { counted, day, nameOf, pageLabel, score, withoutTitle } from "./format.js";
import { markedPassage, openReader } from "./reader.js";

// Of a passage, this much is shown before the marked sentence.
const BEFORE = 90;

/** The evidence of an answer to a question, best first. `trace` is the answer's `memspan` field. */
export function evidenceList(trace, question) {
  const heading = element("h3", {}, "Evidence");
  if (!trace.evidence.length) {
    const why = "No passage was put before the model: it answered from its compressed memory alone.";
    return element("section", { class: "evidence" }, heading, element("p", { class: "quiet-text" }, why));
  }
  const place = { bank: trace.bank, namespace: trace.namespace };
  const items = trace.evidence.map((evidence) => passage(evidence, roundOf(evidence, trace), place, question));
  return element("section", { class: "evidence", "aria-label": "Evidence" }, heading, element("ol", {}, ...items));
}

/** The round in which a passage was chosen; null if none says so. */
function roundOf(evidence, trace) {
  return trace.rounds.find((round) => round.chosen.includes(evidence.document_id))?.number ?? null;
}

function passage(evidence, round, place, question) {
  const facts = [
    `score ${score(evidence.score)}`,
    round !== null && `round ${round}`,
    evidence.layers !== null && `attended by ${counted(evidence.layers, "layer")}`,
    evidence.pages.length > 0 && pageLabel(evidence.pages),
    `characters ${evidence.span.start}–${evidence.span.end}`,
    day(evidence.date),
  ];
  return element(
    "li",
    { class: "passage" },
    button(nameOf(evidence), () => openReader(evidence, place, question), {
      class: "title",
      title: `Read ${evidence.id} with what the model read of it`,
    }),
    element("blockquote", { dir: "auto" }, ...excerpt(evidence, question)),
    element("p", { class: "about" }, facts.filter(Boolean).join(" · ")),
  );
}

/** A passage from a little before its marked sentence on, without a title it begins with; the sheet cuts it off. */
function excerpt(evidence, question) {
  const [start, ...rest] = markedPassage(evidence, question);
  const before = withoutTitle(start, evidence.title);
  if (!rest.length || before.length <= BEFORE) return [before, ...rest];
  const near = before.slice(-BEFORE);
  return [`…${near.slice(near.search(/\s/) + 1)}`, ...rest];
}
