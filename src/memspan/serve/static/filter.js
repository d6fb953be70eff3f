// Which memories are meant: conditions on their metadata, and the day up to which they were known.

import { button, element, field, select } from "./dom.js";

const OPERATORS = [
  ["==", "is"],
  ["!=", "is not"],
  ["contains", "contains"],
  [">=", "at least"],
  ["<=", "at most"],
];

/** A part of a form; `value()` is what the routes take as `where` and `as_of`. */
export function filterFields() {
  const rows = element("div", { class: "conditions" });
  const asOf = element("input", { type: "date" });
  const add = button("Add a condition", () => rows.append(condition()), { class: "quiet" });
  return {
    node: element(
      "fieldset",
      { class: "filter" },
      element("legend", {}, "Only memories where"),
      rows,
      add,
      field("Known by", asOf, "As of this day: nothing dated later."),
    ),
    value: () => ({ where: whereOf(rows), as_of: asOf.value || undefined }),
  };
}

function condition() {
  const name = element("input", { "aria-label": "Field", placeholder: "title, date, project…", spellcheck: "false" });
  const operator = select(OPERATORS, { "aria-label": "Comparison" });
  const value = element("input", { "aria-label": "Value", placeholder: "value" });
  const made = element(
    "div",
    { class: "condition" },
    name,
    operator,
    value,
    button("×", () => made.remove(), { "aria-label": "Remove this condition", class: "quiet" }),
  );
  queueMicrotask(() => name.focus());
  return made;
}

function whereOf(rows) {
  const where = {};
  for (const row of rows.children) {
    const [name, operator, value] = row.querySelectorAll("input, select");
    if (name.value.trim())
      where[name.value.trim()] = { ...where[name.value.trim()], [operator.value]: read(value.value.trim()) };
  }
  return Object.keys(where).length ? where : undefined;
}

/** Numbers, true, false and "quoted text" are read as JSON; the rest is text. */
function read(text) {
  if (!/^(-?\d|true$|false$|null$|")/.test(text)) return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
