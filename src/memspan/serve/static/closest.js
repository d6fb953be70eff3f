// The sentence of a passage that is closest to a question by its words: a help for the eye, not what the model said.

const IN_TITLE = 0.25;

/**
 * @param {string} title of the passage's memory: its words tell little of where in it to look
 * @returns {{before: string, inside: string, after: string}|null} the passage cut around it; null if no word is shared
 */
export function aroundClosest(text, question, title) {
  const named = new Set(stems(title));
  const wanted = [...new Set(stems(question))];
  const sentences = [...new Intl.Segmenter(undefined, { granularity: "sentence" }).segment(text)];
  const held = sentences.map(({ segment }) => new Set(stems(segment)));
  // A word counts the more, the fewer sentences have it.
  const weights = wanted.map((stem) => {
    const sentencesOfIt = held.filter((stemsHeld) => stemsHeld.has(stem)).length;
    return (named.has(stem) ? IN_TITLE : 1) / (sentencesOfIt || 1);
  });
  const scores = held.map((stemsHeld) =>
    wanted.reduce((sum, stem, at) => sum + (stemsHeld.has(stem) ? weights[at] : 0), 0),
  );
  const best = Math.max(...scores);
  if (!(best > 0)) return null;
  const { index, segment } = sentences[scores.indexOf(best)];
  const end = index + segment.trimEnd().length;
  return { before: text.slice(0, index), inside: text.slice(index, end), after: text.slice(end) };
}

/** Words of four letters and more, without their endings as far as six letters go. */
function stems(text) {
  const words = text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return words.filter((word) => word.length > 3 || /\p{N}/u.test(word)).map((word) => word.slice(0, 6));
}
