// Asking: a conversation, and the box to write in.

import { button, element, field, fill, options, select } from "./dom.js";
import { exchange } from "./exchange.js";
import { filterFields } from "./filter.js";
import { SELECTORS, counted } from "./format.js";
import { bank, changes, lastFailure, lastStatus, mayWrite, place } from "./place.js";

export function askView(root) {
  const conversation = element("div", { class: "conversation" });
  const welcome = element("div", { class: "welcome" });
  const text = element("textarea", {
    rows: 1,
    placeholder: "Ask your memories…",
    "aria-label": "Question",
    dir: "auto",
  });
  const send = element("button", { class: "primary" }, "Ask");
  const how = askOptions();
  const again = button("New conversation", startOver, { class: "quiet", hidden: true });
  const form = element(
    "form",
    { class: "composer", onsubmit: submit, novalidate: true },
    element("div", { class: "question-box" }, text, send),
    element("div", { class: "below" }, how.node, again),
  );
  const talk = { class: "talk", role: "region", "aria-label": "Conversation", tabindex: 0 };
  fill(root, element("div", talk, welcome, conversation), form);

  let turns = []; // exchanges that were answered, as messages
  let running = null;

  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });

  function submit(event) {
    event.preventDefault();
    if (running) return running.stop();
    const question = text.value.trim();
    if (!question) return text.focus();
    text.value = "";
    ask(question);
  }

  async function ask(question) {
    const current = exchange(
      question,
      { ...how.body(), messages: [...turns, { role: "user", content: question }] },
      ask,
    );
    running = current;
    send.textContent = "Stop";
    welcome.hidden = true;
    again.hidden = false;
    conversation.append(current.node);
    current.node.scrollIntoView({ block: "start" });
    const answer = await current.done;
    if (running !== current) return; // the conversation was left meanwhile
    running = null;
    send.textContent = "Ask";
    if (answer !== null) turns.push({ role: "user", content: question }, { role: "assistant", content: answer });
  }

  function startOver() {
    running?.stop();
    running = null;
    turns = [];
    send.textContent = "Ask";
    conversation.replaceChildren();
    welcome.hidden = false;
    again.hidden = true;
    text.focus();
  }

  function tell() {
    const here = bank();
    how.update();
    send.disabled = here === null;
    if (!here) {
      const why = lastFailure() ? lastFailure().message : "";
      return fill(welcome, element("h1", {}, "Not connected"), element("p", {}, why));
    }
    const add = element("a", { href: "#/memories" }, "Add some first");
    const size = element(
      "p",
      {},
      `Answers come from ${counted(here.memories, "memory", "memories")} in ${here.name}, with the passages they rest on.`,
    );
    fill(
      welcome,
      element("h1", {}, "Ask what you remember"),
      here.memories ? size : element("p", {}, "There are no memories here yet. ", add, "."),
    );
  }

  changes.addEventListener("status", tell);
  changes.addEventListener("place", startOver);
  return { show: () => matchMedia("(pointer: fine)").matches && text.focus() };
}

/** How to ask. `body()` is a request without its messages. */
function askOptions() {
  let described = null; // the bank whose selectors are listed
  const selector = select([]);
  const documents = element("input", { type: "number", min: 0, max: 100, value: 5 });
  const rounds = element("input", { type: "number", min: 1, max: 16, placeholder: "as usual" });
  const length = element("input", { type: "number", min: 1, placeholder: "as usual" });
  const remember = element("input", { type: "checkbox" });
  const remembering = element("label", { class: "check" }, remember, "Remember questions and answers");
  const filter = filterFields();
  const node = options(
    "Options",
    element(
      "div",
      { class: "grid" },
      field("Find passages by", selector),
      field("Passages, at most", documents),
      field("Rounds, at most", rounds),
      field("Tokens, at most", length),
    ),
    filter.node,
    remembering,
  );

  function update() {
    const here = bank();
    remembering.hidden = !mayWrite();
    if (!here) return;
    length.max = lastStatus().max_new_tokens;
    if (here.name === described) return;
    described = here.name;
    const chosen = selector.value;
    const usual = `as usual: ${SELECTORS[here.default_selector] ?? here.default_selector}`;
    const names = here.selectors.map((name) => [name, SELECTORS[name] ?? name]);
    fill(selector, ...select([["", usual], ...names]).children);
    selector.value = here.selectors.includes(chosen) ? chosen : "";
  }

  function body() {
    return {
      model: `memspan/${place().bank}`,
      max_tokens: number(length),
      remember: remember.checked && mayWrite(),
      memspan: {
        namespace: place().namespace,
        selector: selector.value || undefined,
        max_documents: number(documents),
        rounds: number(rounds),
        ...filter.value(),
      },
    };
  }

  return { node, update, body };
}

const number = (input) => (input.value === "" ? undefined : Number(input.value));
