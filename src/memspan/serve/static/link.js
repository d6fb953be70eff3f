// A question as a link: what was asked, where and how. Whoever opens it needs a key of their own.

import { dialog, element, field } from "./dom.js";
import { toast } from "./toast.js";

const SETTINGS = ["selector", "documents", "rounds", "tokens", "writer"];

/** The address of a question that was asked with a request's body. */
export function linkOf(question, { model, max_tokens: tokens, memspan }) {
  const told = {
    q: question,
    bank: model.replace(/^memspan\//, ""),
    namespace: memspan.namespace,
    selector: memspan.selector,
    documents: memspan.max_documents,
    rounds: memspan.rounds,
    tokens,
    writer: memspan.own_model && "own",
    where: memspan.where && JSON.stringify(memspan.where),
    as_of: memspan.as_of,
  };
  const query = new URLSearchParams(Object.entries(told).filter(([, value]) => value !== undefined));
  return new URL(`#/ask?${query}`, document.baseURI.replace(/[?#].*$/s, "")).href;
}

/** What a link says; null of an address without a question. Throws where a part of it cannot be read. */
export function linkedQuestion(text) {
  const query = new URLSearchParams(text ?? "");
  const question = (query.get("q") ?? "").trim();
  if (!question) return null;
  const given = (name) => query.get(name) ?? undefined;
  const settings = Object.fromEntries(
    SETTINGS.filter((name) => query.has(name)).map((name) => [name, query.get(name)]),
  );
  return { question, bank: given("bank"), namespace: given("namespace"), settings, ...scopeOf(given) };
}

function scopeOf(given) {
  try {
    return { where: given("where") && JSON.parse(given("where")), as_of: given("as_of") };
  } catch {
    throw new Error("The filter in this link cannot be read.");
  }
}

/** Copy a link; where the browser does not allow that, show it. */
export async function share(link) {
  try {
    await navigator.clipboard.writeText(link);
    toast("Link copied. It holds the question and how it was asked, and no key.");
  } catch {
    const shown = element("input", { readonly: true, value: link });
    dialog(
      "Link to this question",
      {},
      field("Link", shown, "It holds the question and how it was asked, and no key."),
    );
    shown.select();
  }
}
