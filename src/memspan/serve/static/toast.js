// Short messages at the foot of the page, some with something to do.

import { button, element } from "./dom.js";

const SECONDS = 12;

/**
 * Say something. It leaves by itself, but not while it is pointed at or holds the focus.
 * @param {string} message
 * @param {{label: string, run: () => unknown}} [action]
 */
export function toast(message, action) {
  const leave = () => made.remove();
  const act = action && button(action.label, () => (leave(), action.run()));
  const made = element(
    "div",
    { class: "toast" },
    element("span", {}, message),
    act,
    button("×", leave, { "aria-label": "Dismiss", class: "quiet" }),
  );
  document.getElementById("toasts").append(made);
  let left = SECONDS;
  const timer = setInterval(() => {
    if (!made.isConnected) clearInterval(timer);
    else if (!made.matches(":hover, :focus-within") && --left <= 0) leave();
  }, 1000);
}
