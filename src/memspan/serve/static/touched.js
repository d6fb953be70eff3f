// What the questions of this tab touched, for the map.

const MOST = 20;

const asked = []; // the newest last

/** Keep what a question touched. `trace` is its answer's `memspan` field. */
export function keepTouched(question, trace) {
  const read = new Set(trace.evidence.map((item) => item.id));
  const layers = [...trace.routed, ...trace.rounds.flatMap((round) => round.routed)];
  const documents = [...new Set(layers.flatMap((layer) => layer.document_ids))];
  asked.push({ question, bank: trace.bank, namespace: trace.namespace, read, documents });
  asked.splice(0, asked.length - MOST);
}

/** The questions that were asked of a place, the newest first: `read` ids of memories, numbers of `documents`. */
export function questionsOf({ bank, namespace }) {
  return asked.filter((one) => one.bank === bank && one.namespace === namespace).reverse();
}
