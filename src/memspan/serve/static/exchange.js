// One question and its answer, as it is written.

import { stream } from "./api.js";
import { citedText, restsOn } from "./cited.js";
import { button, element, fill, problem } from "./dom.js";
import { evidenceList } from "./evidence.js";
import { counted, shortened } from "./format.js";
import { linkOf, share } from "./link.js";
import { inspector } from "./inspector.js";
import { memoriesChanged } from "./place.js";
import { keepTouched } from "./touched.js";

/**
 * Ask, and show what comes.
 * @param {string} question
 * @param {object} body the request
 * @param {(question: string) => void} again asks once more
 * @returns {{node: Element, stop: () => void, done: Promise<string|null>}} `done`: the answer; null without a whole one
 */
export function exchange(question, body, again) {
  const leaving = new AbortController();
  const answer = element("div", { class: "answer", "aria-live": "polite", "aria-busy": "true", dir: "auto" });
  const progress = element("p", { class: "progress", role: "status" }, "Waiting for its turn…");
  const after = element("div", { class: "after" });
  const heading = element("h2", { class: "question", dir: "auto" }, question);
  const node = element("article", { class: "exchange" }, heading, answer, progress, after);

  async function run() {
    const request = { ...body, stream: true, stream_options: { include_usage: true } };
    const told = { trace: null, usage: null, finish: null };
    try {
      for await (const chunk of stream("POST", "/v1/chat/completions", { body: request, signal: leaving.signal })) {
        const [choice] = chunk.choices;
        const written = choice?.delta.content;
        if (written) answer.append(written);
        const doing = stageOf(chunk);
        if (doing) progress.textContent = doing;
        else if (chunk.memspan) told.trace = chunk.memspan;
        told.usage = chunk.usage ?? told.usage;
        told.finish = choice?.finish_reason ?? told.finish;
      }
      if (told.trace === null) throw new Error("The answer broke off before its end.");
      const text = answer.textContent.trim(); // as the server has it: spans count from there
      showTrace(told, text);
      return text;
    } catch (error) {
      const stopped = error.name === "AbortError";
      const retry = button("Ask again", () => (node.remove(), again(question)));
      fill(after, stopped ? element("p", { class: "note" }, "Stopped.") : problem(error), retry);
      return null;
    } finally {
      progress.textContent = "";
      answer.setAttribute("aria-busy", "false");
    }
  }

  function showTrace({ trace, usage, finish }, text) {
    fill(answer, ...citedText(text, trace, (place) => showPassage(place)));
    if (!text.trim()) answer.append(element("span", { class: "quiet-text" }, "The model wrote nothing."));
    const support = text.trim() && restsOn(trace);
    const cutOff =
      finish === "length" && element("p", { class: "note" }, "The answer reached its limit of tokens and was cut off.");
    const kept =
      trace.remembered.length > 0 &&
      element("p", { class: "note" }, `Remembered as ${counted(trace.remembered.length, "memory", "memories")}.`);
    if (kept) memoriesChanged();
    const told = support && element("p", { class: "note support" }, support);
    keepTouched(question, trace);
    const further = element(
      "div",
      { class: "further" },
      button("Copy link", () => share(linkOf(question, body)), { class: "quiet" }),
      element("a", { href: "#/map" }, "Show on the map"),
    );
    fill(after, told, cutOff, kept, evidenceList(trace, question), inspector(trace, usage), further);
  }

  function showPassage(place) {
    const passage = after.querySelectorAll(".passage")[place - 1];
    passage?.scrollIntoView({ block: "nearest" });
    passage?.querySelector("button").focus();
  }

  return { node, stop: () => leaving.abort(), done: run() };
}

/** What is done now, as a chunk says it; null where it says nothing of that. */
function stageOf(chunk) {
  const { started, round } = chunk.memspan ?? {};
  if (chunk.choices[0]?.delta.content) return "Writing…";
  if (started) return started.number === 1 ? "Finding passages…" : `Finding more: “${shortened(started.query, 80)}”…`;
  if (!round) return null;
  const found = counted(round.chosen.length, "passage");
  return round.ended === "more" ? `Found ${found}; looking further…` : `Reading ${found}…`;
}
