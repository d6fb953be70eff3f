// One question and its answer, as it is written.

import { stream } from "./api.js";
import { button, element, fill, problem } from "./dom.js";
import { evidenceList } from "./evidence.js";
import { counted } from "./format.js";
import { inspector } from "./inspector.js";
import { refresh } from "./place.js";

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
  const progress = element("p", { class: "progress", role: "status" }, "Looking it up…");
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
        if (written) {
          answer.append(written);
          progress.textContent = "";
        }
        if (chunk.memspan?.round) progress.textContent = lookedUp(chunk.memspan.round);
        else if (chunk.memspan) told.trace = chunk.memspan;
        told.usage = chunk.usage ?? told.usage;
        told.finish = choice?.finish_reason ?? told.finish;
      }
      if (told.trace === null) throw new Error("The answer broke off before its end.");
      showTrace(told);
      return answer.textContent;
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

  function showTrace({ trace, usage, finish }) {
    if (!answer.textContent.trim()) answer.append(element("span", { class: "quiet-text" }, "The model wrote nothing."));
    const cutOff =
      finish === "length" && element("p", { class: "note" }, "The answer reached its limit of tokens and was cut off.");
    const kept =
      trace.remembered.length > 0 &&
      element("p", { class: "note" }, `Remembered as ${counted(trace.remembered.length, "memory", "memories")}.`);
    if (kept) refresh();
    fill(after, cutOff, kept, evidenceList(trace, question), inspector(trace, usage));
  }

  return { node, stop: () => leaving.abort(), done: run() };
}

function lookedUp(round) {
  const found = counted(round.chosen.length, "passage");
  return round.ended === "more"
    ? `Round ${round.number}: read ${found}; looking further…`
    : `Round ${round.number}: read ${found}. Writing…`;
}
