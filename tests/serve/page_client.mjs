// Calls a server by the package memspan-client, as its users do, and prints what came back as one line of JSON.
import { ApiError, Client } from "memspan-client";

const [baseUrl, key, odd] = process.argv.slice(2);
const client = new Client({ baseUrl, key });
const ids = JSON.parse(odd);

const failure = async (run) => {
  try {
    await run();
  } catch (error) {
    const kind = error instanceof ApiError ? "ApiError" : error.name;
    return { kind, status: error.status, code: error.code, param: error.param, message: error.message };
  }
};

const kept = [];
for (const id of ids) {
  await client.call("POST", "/v1/memories", { body: { id, text: `text of ${id}`, namespace: "odd" } });
  const params = { id };
  const memory = await client.call("GET", "/v1/memories/{id}", { params, query: { namespace: "odd", bank: undefined } });
  await client.call("PATCH", "/v1/memories/{id}", { params, body: { title: "t", namespace: "odd" } });
  await client.call("DELETE", "/v1/memories/{id}", { params, query: { namespace: "odd" } });
  kept.push(memory.text);
}

const model = "memspan/notes";
const messages = [{ role: "user", content: "Where does the otter live?" }];
const body = { model, messages, max_tokens: 6 };
const whole = await client.call("POST", "/v1/chat/completions", { body });
let text = "";
let trace = null;
for await (const chunk of client.stream("POST", "/v1/chat/completions", { body: { ...body, stream: true } })) {
  text += chunk.choices[0]?.delta.content ?? "";
  trace = chunk.memspan ?? trace;
}
let first = "";
for await (const chunk of client.stream("POST", "/v1/chat/completions", { body: { ...body, stream: true } })) {
  first = chunk.object;
  break; // gives the answer up
}

const memories = [..."abc"].map((id) => ({ id, text: `imported ${id}` }));
const job = await client.call("POST", "/v1/imports", { body: { memories, namespace: "odd" } });
let last = job;
for await (last of client.stream("GET", "/v1/imports/{id}/events", { params: { id: job.id } })) continue;

const stranger = new Client({ baseUrl, key: "wrong" });
const nowhere = new Client({ baseUrl: "http://127.0.0.1:9" });
const leaving = new AbortController();
leaving.abort();
const found = await client.call("GET", "/v1/documents", { query: { ids: trace.evidence.map((one) => one.document_id) } });
const missing = { params: { id: "no/such" } };
console.log(
  JSON.stringify({
    kept,
    text: whole.choices[0].message.content,
    streamed: text.trim(),
    first,
    found: found.data.map((one) => one.id),
    imported: [last.status, last.added],
    health: await client.call("GET", "/health"),
    failures: {
      missing: await failure(() => client.call("GET", "/v1/memories/{id}", missing)),
      key: await failure(() => stranger.call("GET", "/v1/models")),
      field: await failure(() => client.call("POST", "/v1/memories/search", { body: { query: "x", limitt: 1 } })),
      param: await failure(() => client.call("GET", "/v1/memories/{id}")),
      dots: await failure(() => client.call("DELETE", "/v1/memories/{id}", { params: { id: ".." } })),
      unstreamed: await failure(() => client.stream("POST", "/v1/chat/completions", { body }).next()),
      refused: await failure(() => stranger.stream("POST", "/v1/chat/completions", { body }).next()),
      nowhere: await failure(() => nowhere.call("GET", "/health")),
      aborted: await failure(() => client.call("GET", "/health", { signal: leaving.signal })),
    },
  }),
);
