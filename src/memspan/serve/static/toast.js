// A short message at the foot of the page, with something to do or not. A new one takes the place of the one before.

import { button, element } from "./dom.js";

const SECONDS = 12;

let leaveFormer = () => {};

/**
 * Say something. It leaves by itself, but not while it is pointed at or holds the focus.
 * @param {string} message
 * @param {{label: string, run: () => unknown}} [action]
 * @param {() => void} [gone] is called when it has left
 */
export function toast(message, action, gone) {
  const leave = () => {
    if (!made.isConnected) return;
    made.remove();
    gone?.();
  };
  const act = action && button(action.label, () => (leave(), action.run()));
  const made = element(
    "div",
    { class: "toast" },
    element("span", {}, message),
    act,
    button("×", leave, { "aria-label": "Dismiss", class: "quiet" }),
  );
  leaveFormer();
  leaveFormer = leave;
  document.getElementById("toasts").append(made);
  let left = SECONDS;
  const timer = setInterval(() => {
    if (!made.isConnected) clearInterval(timer);
    else if (!made.matches(":hover, :focus-within") && --left <= 0) leave();
  }, 1000);
}
