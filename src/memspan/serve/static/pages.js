// All memories of a scope, page by page.

import { call } from "./api.js";

const PAGE = 100;

/**
 * @param {object} query of `GET /v1/memories`
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<object[]>} waits where the server asks to
 */
export async function* pages(query, signal) {
  for (let cursor = null; ;) {
    const answer = await patiently(
      () => call("GET", "/v1/memories", { query: { ...query, limit: PAGE, cursor }, signal }),
      signal,
    );
    yield answer.data;
    if (!answer.has_more) return;
    cursor = answer.next_cursor;
  }
}

async function patiently(ask, signal) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 429 || !error.retryAfter) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
      signal?.throwIfAborted();
    }
  }
}
