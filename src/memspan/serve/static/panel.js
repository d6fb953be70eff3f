// What stands behind the button in the header: bank and namespace, sizes, health, the key, the theme.

import { hasKey, setKey } from "./api.js";
import { button, dialog, element, field, fill, problem, select } from "./dom.js";
import { bytes, count } from "./format.js";
import { bank, changes, choose, lastFailure, lastStatus, refresh } from "./place.js";
import { THEMES, applyTheme, theme } from "./theme.js";

/** Ask a person for a key; whether one was given. */
export function askForKey(refused) {
  return new Promise((resolve) => {
    const input = element("input", {
      type: "password",
      autocomplete: "off",
      required: true,
      placeholder: "msk_…",
      spellcheck: "false",
    });
    const form = element(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          setKey(input.value.trim());
          asked.close("given");
        },
      },
      refused && problem("The server did not take this key. It may have been revoked."),
      field("API key", input, "Kept in this tab until it is closed, and sent to this server only."),
      element("div", { class: "actions" }, element("button", { class: "primary" }, "Continue")),
    );
    const asked = dialog("This server wants a key", { class: "small" }, form);
    input.focus();
    asked.addEventListener("close", () => resolve(asked.returnValue === "given"));
  });
}

export async function openPanel() {
  const body = element("div", { class: "panel" });
  const panel = dialog("This server", { class: "side" }, body);
  const draw = () => fill(body, ...(lastFailure() ? [problem(lastFailure()), keyPart(panel)] : parts(panel)));
  changes.addEventListener("status", draw);
  panel.addEventListener("close", () => changes.removeEventListener("status", draw));
  draw();
  await refresh();
}

function parts(panel) {
  const [status, here] = [lastStatus(), bank()];
  const busy = status.waiting
    ? `${count(status.running)} running, ${count(status.waiting)} waiting`
    : `${count(status.running)} running`;
  return [
    placePart(status, here),
    facts("Size of this namespace", [
      ["Memories", count(here.memories)],
      ["Encoded documents", count(here.documents)],
      ["Tokens of text", count(here.tokens)],
      ["Chunks kept", count(here.chunks)],
      ["On disk", bytes(here.bytes)],
    ]),
    facts("Health", [
      ["Server", status.ready ? "Takes questions" : "Is stopping"],
      ["Questions", busy],
      ["Changes waiting", count(here.writes_waiting)],
      ["Files newer than their memory", count(here.stale_files)],
      ["Version", status.version],
      ["You may", status.scopes.join(", ")],
    ]),
    themePart(),
    keyPart(panel),
  ];
}

function placePart(status, here) {
  const banks = select(
    status.banks.map((one) => one.name),
    { onchange: () => choose({ bank: banks.value }) },
  );
  banks.value = here.name;
  const known = element(
    "datalist",
    { id: "namespaces" },
    ...here.namespaces.map((name) => element("option", { value: name })),
  );
  const namespace = element("input", {
    list: "namespaces",
    value: status.namespace,
    autocomplete: "off",
    spellcheck: "false",
  });
  namespace.addEventListener("change", () => choose({ namespace: namespace.value.trim() || "default" }));
  return element(
    "section",
    {},
    field("Bank", banks),
    field("Namespace", namespace, "Memories of other namespaces are not seen."),
    known,
  );
}

function facts(title, pairs) {
  const rows = pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  return element("section", {}, element("h3", {}, title), element("dl", { class: "facts" }, ...rows));
}

function themePart() {
  const choices = select(THEMES, { onchange: () => applyTheme(choices.value) });
  choices.value = theme();
  return element("section", {}, field("Appearance", choices));
}

function keyPart(panel) {
  const again = () => {
    panel.close();
    setKey(null);
    refresh();
  };
  return hasKey()
    ? element("section", {}, button("Forget the API key", again))
    : lastFailure() && element("section", {}, button("Try again", again));
}
