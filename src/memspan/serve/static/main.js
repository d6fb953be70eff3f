// The page as a whole: which of its two parts is shown, and where we are.

import { onKeyWanted } from "./api.js";
import { askView } from "./ask.js";
import { browserView } from "./browser.js";
import { counted } from "./format.js";
import { mapView } from "./map.js";
import { askForKey, openPanel } from "./panel.js";
import { bank, changes, lastFailure, lastStatus, refresh } from "./place.js";
import { applyTheme } from "./theme.js";

const REFRESH_SECONDS = 30;

applyTheme();
onKeyWanted(askForKey);

const views = {
  ask: askView(document.getElementById("ask")),
  memories: browserView(document.getElementById("memories")),
  map: mapView(document.getElementById("map")),
};

/** Show what the address says: `#/ask`, `#/ask?q=QUESTION` with how to ask, `#/memories`, `#/memories/ID`, `#/map`. */
function route() {
  const [, name, rest, query] = /^#\/(\w+)(?:\/(.*)|\?(.*))?$/s.exec(location.hash) ?? [];
  const shown = name in views ? name : "ask";
  for (const part of Object.keys(views)) document.getElementById(part).hidden = part !== shown;
  for (const link of document.querySelectorAll(".bar nav a")) {
    if (link.hash === `#/${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${{ ask: "Ask", memories: "Memories", map: "Map" }[shown]} · memspan`;
  views[shown].show(rest ? decoded(rest) : null, query);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** The button in the header: which bank, how many memories, whether the server answers. */
function tellPlace() {
  const [here, status] = [bank(), lastStatus()];
  const button = document.getElementById("place");
  button.dataset.health = lastFailure() ? "down" : status?.ready ? "up" : "stopping";
  const size = lastFailure() ? "" : counted(here.memories, "memory", "memories");
  document.getElementById("place-name").textContent = lastFailure() ? "Not connected" : here.name;
  document.getElementById("place-size").textContent = size;
}

changes.addEventListener("status", tellPlace);
window.addEventListener("hashchange", route);
document.getElementById("place").addEventListener("click", openPanel);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which part is shown
  document.getElementById("main").focus();
});
setInterval(() => document.visibilityState === "visible" && refresh(), REFRESH_SECONDS * 1000);

await refresh();
route();
