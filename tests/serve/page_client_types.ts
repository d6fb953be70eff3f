// What the types of memspan-client allow and forbid: `tsc` reads this, nothing runs it.
import { ApiError, Client, type Schemas } from "memspan-client";

export async function allowed(client: Client): Promise<string> {
  const memory: Schemas["MemoryOut"] = await client.call("POST", "/v1/memories", { body: { text: "x" } });
  const page = await client.call("GET", "/v1/memories", { query: { limit: 3 } });
  await client.call("GET", "/v1/memories");
  await client.call("DELETE", "/v1/memories/{id}", { params: { id: memory.id }, query: { bank: "b" } });
  const metrics: string = await client.call("GET", "/metrics", { signal: AbortSignal.timeout(1000) });
  const body: Schemas["ChatRequest"] = { model: "memspan", messages: [{ role: "user", content: "?" }], stream: true };
  const answer = await client.call("POST", "/v1/chat/completions", { body });
  for await (const chunk of client.stream("POST", "/v1/chat/completions", { body })) {
    const text: string | undefined = chunk.choices[0]?.delta.content;
    if (chunk.memspan && "evidence" in chunk.memspan) return `${text}${chunk.memspan.evidence[0].id}`;
  }
  for await (const job of client.stream("GET", "/v1/imports/{id}/events", { params: { id: "x" } })) job.done.toFixed();
  return `${page.data[0].text}${metrics}${answer.memspan.citations.length}`;
}

export async function forbidden(client: Client, error: ApiError): Promise<void> {
  // @ts-expect-error there is no such route
  await client.call("GET", "/v1/memory");
  // @ts-expect-error the route has no such method
  await client.call("PATCH", "/v1/memories", { body: {} });
  // @ts-expect-error the path's parameter is missing
  await client.call("GET", "/v1/memories/{id}");
  // @ts-expect-error the body is missing
  await client.call("POST", "/v1/memories");
  // @ts-expect-error a body lacks its text
  await client.call("POST", "/v1/memories", { body: { id: "x" } });
  // @ts-expect-error a field of the wrong type
  await client.call("POST", "/v1/memories", { body: { text: 1 } });
  // @ts-expect-error a misspelt field
  await client.call("POST", "/v1/memories", { body: { text: "x", metdata: {} } });
  // @ts-expect-error a query is missing
  await client.call("GET", "/v1/documents");
  // @ts-expect-error a misspelt parameter
  await client.call("GET", "/v1/memories", { query: { namspace: "x" } });
  // @ts-expect-error this route does not stream
  client.stream("GET", "/v1/memories");
  // @ts-expect-error an error is read
  error.status = 1;
}
