// Numbers, times and texts as people read them.

/** Who finds passages, as the page says it. */
export const SELECTORS = {
  lexical: "words in common",
  router: "the model's router",
  hybrid: "router and words",
  generate: "the model naming them",
};

const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);

/** "1 memory", "2 memories". */
export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export function seconds(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export function bytes(value) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 1000 && unit < units.length - 1; unit++) value /= 1000;
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** A score with three significant digits. */
export function score(value) {
  return Number(value.toPrecision(3)).toString();
}

/** A day stays a day; a moment is written in the reader's time. */
export function day(text) {
  if (!text || text.length <= "2026-03-01".length) return text || "";
  const moment = new Date(/[zZ]|[+-]\d\d:?\d\d$/.test(text) ? text : `${text}Z`);
  if (Number.isNaN(moment.getTime())) return text;
  const two = (number) => String(number).padStart(2, "0");
  const date = `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
  return `${date} ${two(moment.getHours())}:${two(moment.getMinutes())}`;
}

/** What a memory is called: its title, or its first words, or its id. */
export function nameOf({ title, text, id }) {
  if (title) return title;
  const words = (text || "").trim().replace(/\s+/g, " ");
  return words ? shortened(words, 60) : id;
}

/** Pages as people write them: "page 3", "pages 3–4". */
export function pageLabel(pages) {
  return pages.length > 1 ? `pages ${pages[0]}–${pages.at(-1)}` : `page ${pages[0]}`;
}

/** A text without the title that many texts begin with, where that is a line of its own. */
export function withoutTitle(text, title) {
  const begun = text.trimStart();
  const [line] = /^[^\r\n]*/.exec(begun);
  const isTitle = title.trim() && line.replace(/^#{1,6}\s+/, "").trim() === title.trim();
  return isTitle ? begun.slice(line.length).trimStart() : text;
}

// Below this share of the best score an answer reads no passage, and a search sets it apart; and below this score
// where no word is shared with what was looked for either.
const WEAK_SHARE = 0.5;
const LOW_SCORE = 0.1;

/** Whether a passage that was found hardly fits. `best` is the highest score that was found. */
export function isWeak(score, best, sharesWords) {
  return best > 0 && (score < WEAK_SHARE * best || (score < LOW_SCORE && !sharesWords));
}

/** How well a passage fits beside the others, in words; null where scores do not say. */
export function fit(score, best) {
  if (!(best > 0)) return null;
  if (score === best) return "best match";
  return score >= 0.8 * best ? "nearly as good a match" : score >= WEAK_SHARE * best ? "fair match" : "weak match";
}

/** At most `most` characters, cut between words where there are some. */
export function shortened(text, most) {
  const characters = [...text.slice(0, 2 * most + 2)];
  if (characters.length <= most) return text;
  const cut = characters.slice(0, most).join("");
  const space = cut.lastIndexOf(" ");
  return `${space > most / 2 ? cut.slice(0, space) : cut}…`;
}

/**
 * Where a span begins and ends in a string.
 *
 * Spans count characters (code points); a JavaScript string counts UTF-16 units, two for an emoji.
 */
export function units(text, { start, end }) {
  let [points, at, from] = [0, 0, null];
  for (const character of text) {
    if (points === start) from = at;
    if (points === end) break;
    points += 1;
    at += character.length;
  }
  return [from ?? at, at];
}

/** Cut a text in three: before, inside and after a span. */
export function cut(text, span) {
  const [from, to] = units(text, span);
  return [text.slice(0, from), text.slice(from, to), text.slice(to)];
}
