// A server's routes, for the page and for Node: the package memspan-client is this file, with types.

import { eventData } from "./sse.js";

/** What the server refused, in its words. */
export class ApiError extends Error {
  /** @param {number | null} status null: the answer had begun. */
  constructor(status, { message, code = null, param = null }, retryAfter = null) {
    super(retryAfter ? `${message} (in ${retryAfter} s)` : message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter && Number(retryAfter);
  }
}

/** One server, called with one key. */
export class Client {
  /** @param {{baseUrl: string | URL, key?: string, fetch?: typeof fetch}} options fetch: instead of the system's. */
  constructor({ baseUrl, key, fetch = (...request) => globalThis.fetch(...request) }) {
    this.baseUrl = new URL(baseUrl);
    this.baseUrl.search = this.baseUrl.hash = "";
    if (!this.baseUrl.pathname.endsWith("/")) this.baseUrl.pathname += "/";
    this.headers = key ? { Authorization: `Bearer ${key}` } : {};
    this.fetch = fetch;
  }

  /** Call a route; what it answers. */
  async call(method, path, options = {}) {
    const response = await this.#request(method, path, options);
    return isJson(response) ? response.json() : response.text();
  }

  /** Call a route that streams; its events as they come. Leaving the loop gives the request up. */
  async *stream(method, path, options = {}) {
    const response = await this.#request(method, path, options);
    if (isJson(response)) throw new TypeError(`${path} did not stream; a question streams with stream: true`);
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error?.message) throw new ApiError(null, event.error);
      yield event;
    }
  }

  async #request(method, path, { params, query, body, signal } = {}) {
    const headers = { ...this.headers, ...(body && { "Content-Type": "application/json" }) };
    const options = { method, headers, signal, body: body && JSON.stringify(body), credentials: "omit" };
    const response = await this.#reached(this.#address(path, params, query), options);
    if (!response.ok) throw await errorOf(response);
    return response;
  }

  #address(path, params = {}, query = {}) {
    const filled = path.replace(/\{(\w+)\}/g, (_, name) => segment(name, params[name]));
    const found = new URL(filled.replace(/^\//, ""), this.baseUrl);
    for (const [name, value] of Object.entries(query)) {
      for (const one of [value].flat())
        if (one !== undefined && one !== null && one !== "") found.searchParams.append(name, one);
    }
    return found;
  }

  async #reached(url, options) {
    try {
      return await this.fetch(url, options);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // given up
      throw new Error("The server cannot be reached. Is it running?", { cause: error });
    }
  }
}

const isJson = (response) => response.headers.get("Content-Type")?.startsWith("application/json") ?? false;

/** A part of a path. Slashes in an id are written as %2F, or "../x" would be read as a way up. */
function segment(name, value) {
  if (value === undefined || value === null || value === "") throw new TypeError(`params.${name} is missing`);
  if (value === "." || value === "..") throw new TypeError(`${name} ${JSON.stringify(value)}: no address can name it`);
  return encodeURIComponent(value);
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const said = body?.error ?? { message: `The server answered ${response.status}.` };
  return new ApiError(response.status, said, response.headers.get("Retry-After"));
}
