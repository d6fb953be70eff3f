// The passages that were put before the model, under the answer they led to.

import { button, element } from "./dom.js";
import { sharedWords } from "./closest.js";
import { day, fit, nameOf, pageLabel, withoutTitle } from "./format.js";
import { markedPassage, openReader } from "./reader.js";

// Of a passage, this much is shown before the marked sentence, and so many words that it shares with the question.
const BEFORE = 90;
const WORDS = 4;

/** The evidence of an answer to a question, best first. `trace` is the answer's `memspan` field. */
export function evidenceList(trace, question) {
  const heading = element("h3", {}, "Evidence");
  if (!trace.evidence.length) {
    const why = "No passage was put before the model: it answered from its compressed memory alone.";
    return element("section", { class: "evidence" }, heading, element("p", { class: "quiet-text" }, why));
  }
  const place = { bank: trace.bank, namespace: trace.namespace };
  const best = Math.max(...trace.evidence.map((evidence) => evidence.score));
  const cited = new Set(trace.citations.map((citation) => citation.evidence));
  const items = trace.evidence.map((evidence, index) =>
    passage(evidence, place, question, [
      fit(evidence.score, best),
      cited.has(index + 1) && "holds words of the answer",
    ]),
  );
  return element("section", { class: "evidence", "aria-label": "Evidence" }, heading, element("ol", {}, ...items));
}

function passage(evidence, place, question, sure) {
  const shared = sharedWords(question, `${evidence.title}\n${evidence.text}`).slice(0, WORDS);
  const facts = [
    ...sure,
    shared.length > 0 && `shares ${shared.map((word) => `“${word}”`).join(", ")} with the question`,
    evidence.pages.length > 0 && pageLabel(evidence.pages),
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
