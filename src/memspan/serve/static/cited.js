// An answer with the passages behind its sentences: a number after each that leads to the passage.

import { button, element } from "./dom.js";
import { nameOf, units } from "./format.js";

// What another model writes of its own behind a sentence; the numbers here stand in its place.
const MARKS = /^\s*(?:\[\s*\d{1,3}(?:\s*,\s*\d{1,3})*\s*\]\s*)*\[\s*\d{1,3}(?:\s*,\s*\d{1,3})*\s*\]/;

/**
 * The parts of an answer's text: its sentences marked where a passage holds their words, or where none does.
 * @param {object} trace the answer's `memspan` field
 * @param {(place: number) => void} open is called with the place of a passage, from 1
 * @returns {(Node|string)[]}
 */
export function citedText(text, trace, open) {
  const claims = new Map(); // by span, since one sentence may rest on several passages
  for (const { span, evidence } of trace.citations) {
    const key = `${span.start} ${span.end}`;
    const claim = claims.get(key) ?? { span, places: [] };
    if (evidence !== null) claim.places.push(evidence);
    claims.set(key, claim);
  }
  const parts = [];
  let at = 0;
  for (const { span, places } of [...claims.values()].sort((one, other) => one.span.start - other.span.start)) {
    const [start, end] = units(text, span);
    if (start < at || end <= start) continue;
    const kind = places.length ? { class: "cited" } : { class: "uncited", title: "No passage holds these words" };
    parts.push(text.slice(at, start), element("span", kind, text.slice(start, end)));
    parts.push(...places.map((place) => mark(place, trace.evidence[place - 1], open)));
    const written = trace.answerer && places.length ? MARKS.exec(text.slice(end)) : null;
    at = end + (written ? written[0].length : 0);
  }
  return [...parts, text.slice(at)];
}

function mark(place, item, open) {
  const label = `Passage ${place}: ${item ? nameOf(item) : ""}`;
  return element(
    "sup",
    {},
    button(place, () => open(place), { class: "cite", "aria-label": label, title: label }),
  );
}

/** What an answer rests on, in a sentence; null where there is nothing to say. */
export function restsOn(trace) {
  if (!trace.answered) return "Your memories do not say: take this answer for a guess.";
  const spans = new Map(trace.citations.map(({ span, supported }) => [`${span.start} ${span.end}`, supported]));
  const unsupported = [...spans.values()].filter((supported) => !supported).length;
  if (!unsupported || !trace.evidence.length) return null;
  if (unsupported === spans.size) return "No passage holds the words of this answer. Check it before you rely on it.";
  return "No passage holds the words that are underlined with dots. Check them before you rely on them.";
}
