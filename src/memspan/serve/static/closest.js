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

const words = (text) =>
  [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)]
    .filter(({ isWordLike }) => isWordLike)
    .map(({ segment }) => segment);

/** Words that count: of four letters and more, with a figure, or of a script whose words are short. */
const COUNTS = /^.{4}|\p{N}|[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}\p{sc=Thai}]/u;

/** A word without its ending, as far as six letters go. */
const stem = (word) => word.toLowerCase().slice(0, 6);

/** Stems that are equal, or one the beginning of the other: "live" and "lives". */
const sameStem = (one, other) =>
  one === other || (Math.min(one.length, other.length) > 3 && (one.startsWith(other) || other.startsWith(one)));

const stems = (text) =>
  words(text)
    .filter((word) => COUNTS.test(word))
    .map(stem);

/** Words of a question that a text has, too, as the question writes them; its short words only if it has no others. */
export function sharedWords(question, text) {
  const asked = words(question);
  const counted = asked.filter((word) => COUNTS.test(word));
  const held = [...new Set(words(text).map(stem))];
  const shared = (counted.length ? counted : asked).filter((word) => held.some((one) => sameStem(one, stem(word))));
  return [...new Map(shared.map((word) => [stem(word), word])).values()];
}
