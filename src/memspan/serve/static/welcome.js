// What stands where there is no conversation yet: what can be asked, or what to do first.

import { openAdd } from "./add.js";
import { button, element } from "./dom.js";
import { counted } from "./format.js";
import { bank, choose, lastFailure, lastStatus, mayWrite, memoriesChanged, place } from "./place.js";

/** Elements for the place as it is now. */
export function welcomeParts() {
  const here = bank();
  if (!here) {
    const why = lastFailure() ? lastFailure().message : "";
    return [element("h2", {}, "Not connected"), element("p", {}, why)];
  }
  if (here.memories) {
    const size = counted(here.memories, "memory", "memories");
    return [
      element("h2", {}, "Ask what you remember"),
      element("p", {}, `Answers come from ${size} in ${here.name}, with the passages they rest on.`),
    ];
  }
  return [element("h2", {}, "There are no memories here yet"), ...firstSteps(here), ...elsewhere(here)];
}

function firstSteps(here) {
  if (!mayWrite())
    return [element("p", {}, "Your key may read. To add memories, ask for a key with the scope “write”.")];
  const command = element("code", {}, `memspan add ${here.name} FOLDER`);
  return [
    element(
      "p",
      {},
      "Paste a text, or choose files: text, Markdown, or JSON Lines as an export of this page has them.",
    ),
    element(
      "div",
      { class: "actions" },
      button("Add memories", () => openAdd(memoriesChanged), { class: "primary" }),
    ),
    element("p", {}, "PDFs, office files, mail, code and whole folders are added where the bank lies: ", command),
  ];
}

/** Ways to memories of other banks and namespaces. */
function elsewhere(here) {
  const banks = lastStatus().banks.filter((one) => one.memories && one.name !== here.name);
  const namespaces = here.namespaces.filter((name) => name !== place().namespace);
  const ways = [
    ...banks.map((one) => button(`Bank ${one.name}`, () => choose({ bank: one.name }))),
    ...namespaces.map((name) => button(`Namespace ${name}`, () => choose({ namespace: name }))),
  ];
  return ways.length
    ? [element("p", {}, "There are memories elsewhere:"), element("div", { class: "actions" }, ...ways)]
    : [];
}
