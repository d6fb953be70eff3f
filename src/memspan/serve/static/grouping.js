// Memories by source and time: at most so many rows and columns, however many memories there are.

const ROWS = 12;
const MONTH = new Intl.DateTimeFormat("en", { month: "long", year: "numeric", timeZone: "UTC" });
const DAY = 86_400_000;

const years = (length, label) => ({ of: ([year]) => Math.floor(year / length), label: (at) => label(at * length) });

// Steps of time from fine to coarse: the number of a step, and what it is called.
const STEPS = [
  { of: (date) => Math.floor(moment(date) / DAY), label: (at) => new Date(at * DAY).toISOString().slice(0, 10) },
  {
    of: ([year, month]) => year * 12 + month - 1,
    label: (at) => MONTH.format(moment([Math.floor(at / 12), (at % 12) + 1, 1])),
  },
  {
    of: ([year, month]) => year * 4 + Math.floor((month - 1) / 3),
    label: (at) => `Q${(at % 4) + 1} ${Math.floor(at / 4)}`,
  },
  years(1, String),
  years(10, (year) => `${year}s`),
  years(100, (year) => `${year}–${year + 99}`),
  years(1000, (year) => `${year}–${year + 999}`),
];

function moment([year, month, day]) {
  const date = new Date(0);
  date.setUTCFullYear(year, month - 1, day);
  return date.getTime();
}

/** Year, month and day of a date; the first of what it leaves open. */
function dateOf(memory) {
  const found = /^(\d{4})(?:-(\d\d))?(?:-(\d\d))?/.exec(memory.date ?? memory.added_at);
  return found ? found.slice(1).map((part) => Number(part ?? 1)) : [1970, 1, 1];
}

/** Where a memory comes from: what its metadata say, or its folder, or its kind. */
export function sourceOf({ id, metadata }) {
  if (typeof metadata.source === "string" && metadata.source.trim()) return metadata.source.trim();
  if (metadata.speaker) return "Conversations";
  const folder = /^\/?([^/]+)\/./s.exec(id);
  if (folder) return folder[1];
  return metadata.path ? "Files" : "Single memories";
}

/**
 * @param {object[]} memories as the routes list them
 * @param {number} most columns
 * @returns {{numSources: number, rows: string[], columns: string[], cells: {row: number, column: number, memories: object[]}[]}}
 *     rows by size, columns in order without gaps, and of the cells those that hold something
 */
export function grouped(memories, most) {
  const dates = memories.map(dateOf);
  const { step, first, last } = fitting(dates, most);
  const sizes = new Map();
  for (const memory of memories) sizes.set(sourceOf(memory), (sizes.get(sourceOf(memory)) ?? 0) + 1);
  const sources = [...sizes].sort(([a, one], [b, other]) => other - one || (a < b ? -1 : 1)).map(([name]) => name);
  const rows = sources.length > ROWS ? sources.slice(0, ROWS - 1) : sources;
  const place = new Map(rows.map((name, index) => [name, index]));
  if (sources.length > ROWS) rows.push(`${sources.length - ROWS + 1} other sources`);
  const cells = new Map();
  memories.forEach((memory, index) => {
    const row = place.get(sourceOf(memory)) ?? ROWS - 1;
    const column = step.of(dates[index]) - first;
    const key = row * most + column;
    if (!cells.has(key)) cells.set(key, { row, column, memories: [] });
    cells.get(key).memories.push(memory);
  });
  const columns = memories.length ? Array.from({ length: last - first + 1 }, (_, at) => step.label(first + at)) : [];
  return {
    numSources: sources.length,
    rows,
    columns,
    cells: [...cells].sort(([one], [other]) => one - other).map(([, cell]) => cell),
  };
}

/** The finest step of time that takes no more than so many columns. */
function fitting(dates, most) {
  for (const step of STEPS) {
    let [first, last] = [Infinity, -Infinity];
    for (const date of dates) {
      first = Math.min(first, step.of(date));
      last = Math.max(last, step.of(date));
    }
    if (last - first < most) return { step, first, last };
  }
  throw new Error("a thousand years are the longest step");
}
