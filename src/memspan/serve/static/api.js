// The server's routes. A key is kept for this tab alone, and is asked for when the server wants one.

import { eventData } from "./sse.js";

const KEY = "memspan.key";

/** What the server refused, in its words. */
export class ApiError extends Error {
  constructor(status, { message, code, param }, retryAfter) {
    super(retryAfter ? `${message} (in ${retryAfter} s)` : message);
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = Number(retryAfter) || null;
  }
}

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

/** Call a route; its JSON. */
export async function call(method, path, options = {}) {
  const response = await request(method, path, options);
  return response.json();
}

/** Call a route that streams; every event's data. */
export async function* stream(method, path, options = {}) {
  const response = await request(method, path, options);
  yield* eventData(response.body);
}

/** The path of a memory. Slashes in its id are written as %2F, or "../x" would be read as a way up. */
export const memoryPath = (id) => `v1/memories/${encodeURIComponent(id)}`;

async function request(method, path, { body, query, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = {
      ...(key && { Authorization: `Bearer ${key}` }),
      ...(body && { "Content-Type": "application/json" }),
    };
    const response = await reached(address(path, query), {
      method,
      headers,
      signal,
      body: body && JSON.stringify(body),
      credentials: "omit",
    });
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || !(await keyGiven(key))) throw error;
  }
}

/** Whether there is a new key to try: somebody may have given one while this request was on its way. */
async function keyGiven(tried) {
  if (sessionStorage.getItem(KEY) !== tried) return true;
  asking ??= askForKey(tried !== null).finally(() => (asking = null));
  return asking;
}

function address(path, query = {}) {
  const found = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat())
      if (one !== undefined && one !== null && one !== "") found.searchParams.append(name, one);
  }
  return found;
}

async function reached(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it running?");
  }
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const told = body?.error ?? { message: `The server answered ${response.status}.`, code: null };
  return new ApiError(response.status, told, response.headers.get("Retry-After"));
}
