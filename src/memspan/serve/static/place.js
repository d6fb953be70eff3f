// Where we are: the bank and the namespace that are asked and shown, and what the server says of them.

import { call } from "./api.js";

const BANK = "memspan.bank";
const NAMESPACE = "memspan.namespace";

/**
 * Tells `status` when the server was asked how it is, `place` when another bank or namespace was chosen, and `memories`
 * when another part of the page changed some.
 */
export const changes = new EventTarget();

let status = null;
let failure = null;
// Times the server was asked, and the last of them whose answer is shown: answers may overtake each other.
let asked = 0;
let shown = 0;

/** What the server said last; null before. */
export const lastStatus = () => status;

/** Why the server could not be asked; null if it could. */
export const lastFailure = () => failure;

/** The bank that is asked and shown, as the server describes it; null before it was asked. */
export function bank() {
  const banks = status?.banks ?? [];
  return banks.find((one) => one.name === sessionStorage.getItem(BANK)) ?? banks[0] ?? null;
}

/** Bank and namespace as the routes take them. */
export function place() {
  return { bank: bank()?.name, namespace: status?.namespace };
}

export const mayWrite = () => status?.scopes.includes("write") ?? false;

/** Ask the server how it is. */
export async function refresh() {
  const mine = ++asked;
  try {
    const namespace = sessionStorage.getItem(NAMESPACE) ?? undefined;
    const answer = await call("GET", "/v1/status", { query: { namespace } });
    if (mine < shown) return;
    [status, failure, shown] = [answer, null, mine];
  } catch (error) {
    if (mine < shown) return;
    if (error.param === "namespace" && sessionStorage.getItem(NAMESPACE) !== null) {
      sessionStorage.removeItem(NAMESPACE); // of another key, or none
      return refresh();
    }
    [failure, shown] = [error, mine];
  }
  changes.dispatchEvent(new Event("status"));
}

/** Some memories were added, changed or deleted. */
export async function memoriesChanged() {
  await refresh();
  changes.dispatchEvent(new Event("memories"));
}

export async function choose({ bank: name, namespace }) {
  if (name !== undefined) sessionStorage.setItem(BANK, name);
  if (namespace !== undefined) sessionStorage.setItem(NAMESPACE, namespace);
  await refresh();
  changes.dispatchEvent(new Event("place"));
}
