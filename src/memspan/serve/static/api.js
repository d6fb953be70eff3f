// The server's routes, for the page. A key is kept for this tab alone, and is asked for when the server wants one.

import { Client } from "./client.js";

const KEY = "memspan.key";

let askForKey = async () => false;
let asking = null;

/** @param {(refused: boolean) => Promise<boolean>} asker asks a person for a key; whether one was given. */
export function onKeyWanted(asker) {
  askForKey = asker;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

const client = new Client({ baseUrl: new URL(".", document.baseURI), fetch: withKey });

/** Call a route; its JSON. */
export const call = (method, path, options) => client.call(method, path, options);

/** Call a route that streams; its events. */
export const stream = (method, path, options) => client.stream(method, path, options);

async function withKey(url, options) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(url, { ...options, headers });
    if (response.status !== 401 || !(await keyGiven(key))) return response;
  }
}

/** Whether there is a new key to try: somebody may have given one while this request was on its way. */
async function keyGiven(tried) {
  if (sessionStorage.getItem(KEY) !== tried) return true;
  asking ??= askForKey(tried !== null).finally(() => (asking = null));
  return asking;
}
