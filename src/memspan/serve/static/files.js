// Files as memories. Only what is text already is read here; the command reads more, and the server says what.

const TEXTS = /\.(txt|text|md|markdown|rst|log)$/i;
const RECORDS = /\.(jsonl|ndjson)$/i;
const LARGEST = 8 * 2 ** 20;

export const ACCEPTED = ".txt,.text,.md,.markdown,.rst,.log,.jsonl,.ndjson";

/** Whether something that is dragged holds files. */
export const hasFiles = (event) => event.dataTransfer?.types.includes("Files") ?? false;

/**
 * Files and folders that were dropped or chosen, with their paths.
 * @param {DataTransfer|FileList} given
 * @returns {Promise<{path: string, file: File}[]>}
 */
export async function filesOf(given) {
  if (!("items" in given)) return [...given].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
  // All entries first: they are gone once anything is awaited.
  const entries = [...given.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  return (await Promise.all(entries.map(walk))).flat();
}

async function walk(entry) {
  if (entry.name.startsWith(".")) return [];
  if (entry.isFile)
    return [
      { path: entry.fullPath.replace(/^\//, ""), file: await new Promise((done, fail) => entry.file(done, fail)) },
    ];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) return (await Promise.all(found.map(walk))).flat();
    found.push(...some);
  }
}

/**
 * The memories in files, and what could not be read.
 * @param {{path: string, file: File}[]} files
 * @param {{formats: string[], image_formats: string[]}} status extensions that the command reads
 * @returns {Promise<{memories: object[], skipped: {source: string, reason: string}[]}>}
 */
export async function memoriesOf(files, status) {
  const [memories, skipped] = [[], []];
  for (const { path, file } of files) {
    try {
      if (!TEXTS.test(path) && !RECORDS.test(path)) throw new Error(whyNot(path, status));
      if (file.size > LARGEST) throw new Error("too large for the page; use the command: memspan add");
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new Error("not a text");
      if (RECORDS.test(path)) readRecords(path, text, memories, skipped);
      else if (text.trim()) memories.push({ id: path, title: titleOf(path, text), text });
      else throw new Error("empty");
    } catch (error) {
      const reason = error instanceof TypeError ? "not a text in UTF-8" : error.message;
      skipped.push({ source: path, reason });
    }
  }
  return { memories, skipped };
}

// Endings of compressed files, which the command opens by themselves.
const COMPRESSED = /\.(gz|xz|bz2|zst)$/i;

/** Why the page does not read a file of another kind. */
function whyNot(path, { formats, image_formats: images }) {
  const name = path.split("/").pop();
  const kinds = [name, name.replace(COMPRESSED, "")].map((one) => /\.([^.]+)$/.exec(one)?.[1].toLowerCase());
  if (kinds.some((kind) => images.includes(kind))) return "the command reads the text in images: memspan add --ocr";
  if (kinds.some((kind) => formats.includes(kind)))
    return "the page reads text, Markdown and JSON Lines only; the command reads this: memspan add";
  return kinds[0]
    ? `neither the page nor the command reads .${kinds[0]} files`
    : "a file without an extension is not read";
}

/** A first line that reads like a title, short and with a blank line after it; else the file's name. */
function titleOf(path, text) {
  const [first, second] = text.trimStart().split("\n", 2);
  const line = first.replace(/^#{1,6}\s+/, "").trim();
  return line && line.length <= 100 && !(second ?? "").trim()
    ? line
    : path
        .split("/")
        .pop()
        .replace(/\.\w+$/, "");
}

/** One JSON object a line: text (or content, or body), and id, title, date; every other key is metadata. */
function readRecords(path, text, memories, skipped) {
  for (const [index, line] of text.split("\n").entries()) {
    if (!line.trim()) continue;
    const source = `${path}#${index + 1}`;
    let record = null;
    try {
      record = JSON.parse(line);
    } catch {
      // said below
    }
    const key = ["text", "content", "body"].find((name) => typeof record?.[name] === "string" && record[name].trim());
    if (key === undefined) {
      skipped.push({ source, reason: 'not a JSON object with "text"' });
      continue;
    }
    if (record.superseded_at) {
      skipped.push({ source, reason: "a former version; export the bank without --history" });
      continue;
    }
    const { [key]: words, id, external_id, title, date, metadata, ...rest } = record;
    const isDate = typeof date === "string" && /^\d{4}-\d{2}-\d{2}/.test(date) && !Number.isNaN(Date.parse(date));
    const isObject = metadata !== null && typeof metadata === "object" && !Array.isArray(metadata);
    const own = isObject ? metadata : {};
    const isExport = isObject && typeof external_id === "string" && typeof rest.namespace === "string";
    const { retention, others } = isExport ? ofExport(rest) : { retention: {}, others: rest };
    memories.push({
      id: String(id ?? external_id ?? source),
      text: words,
      title: typeof title === "string" ? title : "",
      date: isDate ? date : undefined,
      metadata: { ...own, ...others, ...(date !== undefined && !isDate && { date }) },
      ...retention,
    });
  }
}

/** What a line of an export says beside its text, date and metadata. */
function ofExport({ namespace: _, recorded_at: __, superseded_at: ___, expires, pinned, ...others }) {
  return { retention: { ...(expires && { expires }), ...(pinned && { pinned }) }, others };
}

/** Cut a list of memories into requests of a size that servers take. */
export function batches(memories, mostBytes = 4 * 2 ** 20) {
  const found = [[]];
  let size = 0;
  for (const memory of memories) {
    const own = 4 * (memory.text.length + memory.title.length + memory.id.length);
    if (size + own > mostBytes && found.at(-1).length) {
      found.push([]);
      size = 0;
    }
    found.at(-1).push(memory);
    size += own;
  }
  return found;
}
