// How questions are asked: chosen in the box below, kept in this browser, and for one question in a link.

import { element, field, options, select } from "./dom.js";
import { filterFields } from "./filter.js";
import { SELECTORS } from "./format.js";
import { bank, lastStatus, mayWrite, place } from "./place.js";

const KEPT = "memspan.settings";
const OWN = "own";

/** What was chosen before; nothing where that cannot be read. */
function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT));
    return found !== null && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

function keep(values) {
  const chosen = Object.entries(values).filter(([, value]) => value !== "");
  if (chosen.length) localStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(chosen)));
  else localStorage.removeItem(KEPT);
}

/** A part of a form. `body()` is a request without its messages; `take(link)` sets what a link says, for now. */
export function askSettings() {
  const usual = { type: "number", placeholder: "as usual" };
  const controls = {
    selector: select([]),
    documents: element("input", { ...usual, min: 0, max: 100 }),
    rounds: element("input", { ...usual, min: 1, max: 16 }),
    tokens: element("input", { ...usual, min: 1 }),
    writer: select([]),
  };
  const remember = element("input", { type: "checkbox" });
  const remembering = element("label", { class: "check" }, remember, "Remember questions and answers");
  const filter = filterFields();
  const writing = field("Answers are written by", controls.writer);
  const chosen = element(
    "div",
    { class: "grid" },
    field("Find passages by", controls.selector),
    field("Passages, at most", controls.documents),
    field("Rounds, at most", controls.rounds),
    field("Tokens, at most", controls.tokens),
    writing,
  );
  const node = options("Settings", chosen, filter.node, remembering);
  let wanted = kept(); // also what this bank does not offer: another may

  chosen.addEventListener("change", ({ target }) => {
    const name = Object.keys(controls).find((one) => controls[one] === target);
    wanted = { ...wanted, [name]: target.value };
    keep({ ...kept(), [name]: target.value }); // and not what a link said besides
  });

  /** Offer what the server offers, with what was chosen of it. */
  function update() {
    const here = bank();
    if (!here) return;
    remembering.hidden = !mayWrite();
    const { answerer, max_new_tokens: most } = lastStatus();
    const named = (name) => SELECTORS[name] ?? name;
    offer(controls.selector, [
      ["", `as usual: ${named(here.default_selector)}`],
      ...here.selectors.map((name) => [name, named(name)]),
    ]);
    offer(controls.writer, [["", answerer], ...(answerer ? [[OWN, "the model of the bank"]] : [])]);
    writing.hidden = !answerer;
    controls.tokens.max = most;
    show(wanted);
  }

  function show(values) {
    for (const [name, control] of Object.entries(controls)) {
      if (control.matches(":focus")) continue; // somebody is choosing
      control.value = values[name] ?? "";
      if (control.selectedIndex === -1 || !control.checkValidity()) control.value = "";
    }
  }

  function body() {
    return {
      model: `memspan/${place().bank}`,
      max_tokens: number(controls.tokens),
      remember: remember.checked && mayWrite(),
      memspan: {
        namespace: place().namespace,
        selector: controls.selector.value || undefined,
        max_documents: number(controls.documents),
        rounds: number(controls.rounds),
        own_model: controls.writer.value === OWN || undefined,
        ...filter.value(),
      },
    };
  }

  /** Throws where the link says what cannot be shown here. */
  function take({ settings, where, as_of }) {
    filter.set({ where, as_of });
    wanted = settings;
    show(wanted);
    node.open ||= Object.keys(settings).length > 0 || where !== undefined || as_of !== undefined;
  }

  return { node, update, body, take };
}

/** Fill a list to choose from, if it is another one than before. */
function offer(control, pairs) {
  const told = JSON.stringify(pairs);
  if (control.dataset.offered === told) return;
  control.dataset.offered = told;
  control.replaceChildren(...select(pairs).children);
}

const number = (input) => (input.value === "" ? undefined : Number(input.value));
