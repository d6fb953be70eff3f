import type { components, paths } from "./schema.js";

export type { paths };

/** What routes take and give, by the names of the server's description (`/openapi.json`). */
export type Schemas = components["schemas"];

type Method = "GET" | "POST" | "PATCH" | "DELETE";
type PathOf<M extends Method> = {
  [P in keyof paths]: paths[P] extends Record<Lowercase<M>, unknown> ? P : never;
}[keyof paths];
type Operation<M extends Method, P extends keyof paths> = paths[P][Lowercase<M> & keyof paths[P]];

type Params<O> = O extends { parameters: { path: infer Path } } ? { params: Path } : { params?: undefined };
type Query<O> = O extends { parameters: { query: infer Query } }
  ? { query: Query }
  : O extends { parameters: { query?: infer Query } }
    ? { query?: Query }
    : { query?: undefined };
type Body<O> = O extends { requestBody: { content: { "application/json": infer Sent } } }
  ? { body: Sent }
  : { body?: undefined };

/** What a call takes: parameters of the path and the query, the body, and a signal that gives the call up. */
export type Options<M extends Method, P extends PathOf<M>> = Params<Operation<M, P>> &
  Query<Operation<M, P>> &
  Body<Operation<M, P>> & { signal?: AbortSignal };
type Given<T> = object extends T ? [options?: T] : [options: T];

type Content<O> = O extends { responses: infer R } ? R[keyof R] extends { content: infer C } ? C : never : never;
/** What a call gives. */
export type Result<M extends Method, P extends PathOf<M>> =
  Content<Operation<M, P>> extends { "application/json": infer Json } ? Json : string;

/** A piece of an answer. The last one with a choice has its citations, and `memspan` how the answer came about. */
export interface ChatChunk {
  id: string;
  object: "chat.completion.chunk";
  created: number;
  model: string;
  choices: {
    index: 0;
    delta: { role?: "assistant"; content?: string; annotations?: Schemas["Annotation"][] };
    finish_reason: "stop" | "length" | null;
  }[];
  usage?: Schemas["Usage"];
  memspan?: { round: Schemas["RoundOut"] } | Schemas["TraceOut"];
}

interface Streamed {
  "/v1/chat/completions": ChatChunk;
  "/v1/imports/{id}/events": Schemas["ImportOut"];
}

/** What the server refused, in its words. */
export class ApiError extends Error {
  /** null: the answer had begun. */
  readonly status: number | null;
  readonly code: string | null;
  /** The field that it is about. */
  readonly param: string | null;
  /** Seconds. */
  readonly retryAfter: number | null;
}

/** One server, called with one key. */
export class Client {
  constructor(options: {
    /** Where the server is, as `http://127.0.0.1:8000`. */
    baseUrl: string | URL;
    /** As `memspan keys add` made it. Default: none is sent. */
    key?: string;
    /** Default: the system's. */
    fetch?: typeof globalThis.fetch;
  });

  /**
   * Call a route; what it answers.
   *
   * @throws {ApiError} what the server refused.
   * @throws {TypeError} a parameter of the path is missing, or is an id that no address can name.
   * @throws {Error} the server cannot be reached; an `AbortError` where `signal` gave the call up.
   */
  call<M extends Method, P extends PathOf<M>>(method: M, path: P, ...options: Given<Options<M, P>>): Promise<Result<M, P>>;

  /** Call a route that streams; its events as they come. Leaving the loop gives the request up. Errors as of `call`. */
  stream<M extends Method, P extends PathOf<M> & keyof Streamed>(
    method: M,
    path: P,
    ...options: Given<Options<M, P>>
  ): AsyncGenerator<Streamed[P], void, void>;
}
