// Asking: a conversation, and the box to write in.

import { button, element, fill, problem } from "./dom.js";
import { exchange } from "./exchange.js";
import { linkedQuestion } from "./link.js";
import { bank, changes, choose, lastFailure, lastStatus, place } from "./place.js";
import { askSettings } from "./settings.js";
import { welcomeParts } from "./welcome.js";

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
  const how = askSettings();
  const told = element("div");
  const again = button("New conversation", startOver, { class: "quiet", hidden: true });
  const form = element(
    "form",
    { class: "composer", onsubmit: submit, novalidate: true },
    told,
    element("div", { class: "question-box" }, text, send),
    element("div", { class: "below" }, how.node, again),
  );
  const talk = { class: "talk", role: "region", "aria-label": "Conversation", tabindex: 0 };
  fill(root, element("h1", { class: "unseen" }, "Ask"), element("div", talk, welcome, conversation), form);

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
    told.replaceChildren();
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
    how.update();
    send.disabled = bank() === null;
    fill(welcome, ...welcomeParts());
  }

  /** Put what a link asks into the box. Nothing is asked before somebody presses Ask. */
  async function take(query) {
    try {
      const link = linkedQuestion(query);
      if (link === null) return;
      text.value = link.question;
      await goTo(link);
      how.take(link);
      fill(told, element("p", { class: "note" }, "This question comes from a link. Press Ask to ask it."));
    } catch (error) {
      fill(told, problem(error));
    }
  }

  changes.addEventListener("status", tell);
  changes.addEventListener("place", startOver);
  return {
    async show(_, query) {
      if (query) await take(query);
      if (query || matchMedia("(pointer: fine)").matches) text.focus();
    },
  };
}

/** Choose the bank and the namespace that a link names. Throws where they are not to be had. */
async function goTo({ bank: name, namespace }) {
  if (lastFailure()) throw lastFailure();
  if (name !== undefined && !lastStatus().banks.some((one) => one.name === name))
    throw new Error(`This link asks the bank “${name}”, which this server does not have.`);
  const other =
    (name !== undefined && name !== place().bank) || (namespace !== undefined && namespace !== place().namespace);
  if (other) await choose({ bank: name, namespace });
  if (namespace !== undefined && place().namespace !== namespace)
    throw new Error(`This link asks the namespace “${namespace}”, which is none, or which your key may not enter.`);
}
