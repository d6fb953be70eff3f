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
  const addRow = () => {
    rows.append(condition());
    rows.lastChild.querySelector("input").focus();
  };
  const add = button("Add a condition", addRow, { class: "quiet" });
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
    /** Show a scope. Throws where it says more than these fields can. */
    set({ where = {}, as_of }) {
      const made = conditionsOf(where).map((one) => condition(...one));
      asOf.value = as_of ?? "";
      if (asOf.value !== (as_of ?? "")) throw new Error("The day in this filter cannot be shown here.");
      rows.replaceChildren(...made);
    },
  };
}

function condition(field = "", comparison = "==", given = "") {
  const hint = { placeholder: "title, date, project…", spellcheck: "false" };
  const name = element("input", { "aria-label": "Field", value: field, ...hint });
  const operator = select(OPERATORS, { "aria-label": "Comparison" });
  const value = element("input", { "aria-label": "Value", placeholder: "value", value: given });
  operator.value = comparison;
  const made = element(
    "div",
    { class: "condition" },
    name,
    operator,
    value,
    button("×", () => made.remove(), { "aria-label": "Remove this condition", class: "quiet" }),
  );
  return made;
}

/** A filter as [field, comparison, value] for the fields. */
function conditionsOf(where) {
  const known = OPERATORS.map(([name]) => name);
  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  if (!isObject(where)) throw new Error("The filter in this link cannot be shown here.");
  return Object.entries(where).flatMap(([field, wanted]) =>
    Object.entries(isObject(wanted) ? wanted : { "==": wanted }).map(([comparison, value]) => {
      if (!known.includes(comparison) || (value !== null && typeof value === "object"))
        throw new Error("The filter in this link cannot be shown here.");
      return [field, comparison, read(value) === value && typeof value === "string" ? value : JSON.stringify(value)];
    }),
  );
}

function whereOf(rows) {
  const where = Object.create(null); // a field may be called as what every object has
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
