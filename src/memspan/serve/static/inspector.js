// How an answer came about: seconds by stage, rounds of looking things up, and what every MSA layer routed to.

import { call } from "./api.js";
import { element, fill, select } from "./dom.js";
import { SELECTORS, count, counted, nameOf, score, seconds } from "./format.js";
import { heatMap } from "./heatmap.js";

const STAGES = { queue: "Waiting", select: "Finding", prefill: "Reading", decode: "Writing" };
const ENDINGS = {
  more: "another round followed",
  enough: "the model had enough",
  nothing: "nothing new was found",
  room: "no further text fits",
  limit: "the limit of rounds or passages was reached",
};

/** A part of the page that is built when it is opened. `trace` is the answer's `memspan` field. */
export function inspector(trace, usage) {
  const body = element("div", { class: "inspector-body" });
  const made = element("details", { class: "inspector" }, element("summary", {}, "How this was found"), body);
  const build = async () => {
    const names = await namesOf(trace);
    fill(body, timings(trace.timings, usage), rounds(trace), passages(trace), routing(trace, names));
  };
  made.addEventListener("toggle", build, { once: true });
  return made;
}

function timings(found, usage) {
  const stages = Object.keys(STAGES).filter((stage) => found[stage] !== undefined);
  const total = stages.reduce((sum, stage) => sum + found[stage], 0);
  const bar = element("div", { class: "stages", "aria-hidden": "true" });
  for (const stage of stages) {
    const part = element("span", { "data-stage": stage });
    part.style.flexGrow = found[stage] / (total || 1);
    bar.append(part);
  }
  const facts = stages.map((stage) => fact(STAGES[stage], seconds(found[stage]), stage));
  const tokens = usage ? `, ${count(usage.prompt_tokens)} tokens read, ${count(usage.completion_tokens)} written` : "";
  return element(
    "section",
    {},
    element("h4", {}, `Time: ${seconds(total)}${tokens}`),
    bar,
    element("dl", { class: "legend" }, ...facts),
  );
}

function fact(name, value, stage) {
  return element("div", { "data-stage": stage }, element("dt", {}, name), element("dd", {}, value));
}

function rounds(trace) {
  const names = new Map(trace.evidence.map((item) => [item.document_id, nameOf(item)]));
  const items = trace.rounds.map((round) => {
    const chosen = round.chosen.map((id) => names.get(id) ?? `document ${id}`);
    const notes = [
      round.num_injected_tokens > 0 && `${count(round.num_injected_tokens)} tokens read`,
      round.left_out > 0 && `${count(round.left_out)} left out for want of room`,
      round.unknown > 0 && `${count(round.unknown)} unknown ids named`,
      round.malformed > 0 && `${count(round.malformed)} malformed ids named`,
      round.repeated > 0 && `${count(round.repeated)} named again`,
      ENDINGS[round.ended] ?? round.ended,
    ].filter(Boolean);
    return element(
      "li",
      {},
      element(
        "p",
        {},
        element("strong", {}, `By ${SELECTORS[round.selector] ?? round.selector}: `),
        chosen.join(", ") || "nothing",
      ),
      element("p", { class: "about" }, `Looked for “${round.query}”`),
      round.written && element("p", { class: "about" }, "The model wrote ", element("code", {}, round.written)),
      element("p", { class: "about" }, notes.join(" · ")),
    );
  });
  return element(
    "section",
    {},
    element("h4", {}, trace.rounds.length === 1 ? "One round" : `${trace.rounds.length} rounds`),
    element("ol", { class: "rounds" }, ...items),
  );
}

/** The figures behind the evidence. */
function passages(trace) {
  const roundOf = (id) => trace.rounds.find((round) => round.chosen.includes(id))?.number;
  const items = trace.evidence.map((item) => {
    const round = roundOf(item.document_id);
    const facts = [
      `score ${score(item.score)}`,
      round !== undefined && `round ${round}`,
      item.layers !== null && `attended to by ${counted(item.layers, "layer")}`,
      `characters ${item.span.start}–${item.span.end}`,
    ];
    return element(
      "li",
      {},
      element("p", {}, nameOf(item)),
      element("p", { class: "about" }, facts.filter(Boolean).join(" · ")),
    );
  });
  return (
    items.length > 0 &&
    element("section", {}, element("h4", {}, "Passages"), element("ol", { class: "rounds" }, ...items))
  );
}

function routing(trace, names) {
  const moments = [
    ["While writing the answer", trace.routed],
    ...trace.rounds.map((round) => [`When choosing, round ${round.number}`, round.routed]),
  ].filter(([, layers]) => layers.length);
  const heading = element("h4", {}, "Routing: layers and documents");
  if (!moments.length)
    return element("section", {}, heading, element("p", { class: "quiet-text" }, "No layer routed to anything."));
  const read = new Set(trace.evidence.map((item) => item.document_id));
  const map = element("div");
  const draw = () => fill(map, heatMap(moments[choice.value][1], names, read));
  const choice = select(
    moments.map(([label], index) => [index, label]),
    { "aria-label": "When", onchange: draw },
  );
  draw();
  return element("section", {}, heading, moments.length > 1 && choice, map);
}

/** Names of all documents that anything was routed to. Those of evidence are known; the others are asked for. */
async function namesOf(trace) {
  const names = new Map(trace.evidence.map((item) => [item.document_id, nameOf(item)]));
  const layers = [...trace.routed, ...trace.rounds.flatMap((round) => round.routed)];
  const ids = [...new Set(layers.flatMap((layer) => layer.document_ids))].filter((id) => !names.has(id));
  if (!ids.length) return names;
  try {
    const query = { ids: ids.slice(0, 500), bank: trace.bank, namespace: trace.namespace };
    const found = await call("GET", "/v1/documents", { query });
    for (const item of found.data) names.set(item.document_id, item.title || item.id);
  } catch {
    // Without names the map shows numbers.
  }
  return names;
}
