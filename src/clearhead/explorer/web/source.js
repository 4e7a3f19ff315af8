// Where answers come from: the page's server or a notebook's kernel. An exported file answers alike (embedded.js).

/**
 * @typedef {{meta: any, bytes: ArrayBuffer | null}} Answer
 * @typedef {object} Source
 * @property {(name: string, parameters: Record<string, any>, signal?: AbortSignal) => Promise<Answer>} ask
 * @property {(name: string, body: any, onEvent: (event: any) => void, signal?: AbortSignal) => Promise<void>} stream
 * @property {(file: Blob) => Promise<any>} [upload]
 */

const ASKS_PER_MESSAGE = 16;

/** What a source answers instead: a sentence for the person, and whether it was only given up. */
export class SourceError extends Error {}

/**
 * The page's own server, over HTTP.
 * @param {string} token Sent with every question; never in an address.
 * @returns {Source}
 */
export function httpSource(token) {
  const headers = { Authorization: `Bearer ${token}` };

  async function request(/** @type {string} */ address, /** @type {RequestInit} */ options) {
    let response;
    try {
      response = await fetch(address, { cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer", ...options });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new SourceError("The program that serves this page does not answer. Is it still running?");
    }
    if (!response.ok) throw new SourceError(await refusal(response));
    return response;
  }

  return {
    async ask(name, parameters, signal) {
      const query = new URLSearchParams();
      for (const [key, value] of Object.entries(parameters)) {
        if (value !== null && value !== undefined && value !== "") query.set(key, String(value));
      }
      const response = await request(`api/${name}?${query}`, { headers, signal });
      if (response.headers.get("Content-Type")?.startsWith("application/json")) {
        return { meta: await response.json(), bytes: null };
      }
      return { meta: JSON.parse(response.headers.get("X-Meta") ?? "{}"), bytes: await response.arrayBuffer() };
    },

    async stream(name, body, onEvent, signal) {
      const response = await request(`api/${name}`, {
        method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
      });
      if (response.body) await readLines(response.body, onEvent);
    },

    async upload(file) {
      const response = await request("api/image", {
        method: "PUT", headers: { ...headers, "Content-Type": "application/octet-stream" }, body: file,
      });
      return response.json();
    },
  };
}

async function refusal(/** @type {Response} */ response) {
  try {
    const said = await response.json();
    if (typeof said.error === "string") return said.error;
  } catch {
    // no sentence came: say the status instead
  }
  if (response.status === 401) return "This page needs the whole address that clearhead printed, with what follows the #.";
  return `The server answered ${response.status} ${response.statusText}.`;
}

/**
 * Call `onEvent` with every line of a stream of JSON objects.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {(event: any) => void} onEvent
 */
export async function readLines(stream, onEvent) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += decoder.decode(value, { stream: !done });
    const lines = rest.split("\n");
    rest = done ? "" : /** @type {string} */ (lines.pop());
    for (const line of lines) if (line.trim()) onEvent(JSON.parse(line));
    if (done) return;
  }
}

/**
 * A notebook's kernel, over anywidget's messages: one listener, questions of one frame in one message.
 * @param {any} model
 * @returns {Source & {close: () => void}}
 */
export function commSource(model) {
  let last = 0;
  /** @type {Map<number, {resolve: (answer: Answer) => void, reject: (error: unknown) => void, onEvent?: (event: any) => void}>} */
  const waiting = new Map();
  /** @type {any[]} */
  let batch = [];

  function flush() {
    for (; batch.length; batch = batch.slice(ASKS_PER_MESSAGE)) {
      model.send({ kind: "ask", asks: batch.slice(0, ASKS_PER_MESSAGE) });
    }
  }

  function open(/** @type {any} */ question, /** @type {AbortSignal | undefined} */ signal, /** @type {((event: any) => void) | undefined} */ onEvent) {
    return new Promise((resolve, reject) => {
      const id = ++last;
      waiting.set(id, { resolve, reject, onEvent });
      signal?.addEventListener("abort", () => {
        if (!waiting.delete(id)) return;
        batch = batch.filter((asked) => asked.id !== id);
        model.send({ kind: "cancel", id });
        reject(new DOMException("given up", "AbortError"));
      });
      if (!batch.length) setTimeout(flush);
      batch.push({ id, ...question });
    });
  }

  function hear(/** @type {any} */ message, /** @type {DataView[]} */ buffers) {
    for (const answer of message?.answers ?? []) {
      const entry = waiting.get(answer.id);
      if (!entry) continue;
      if (answer.event) {
        entry.onEvent?.(answer.event);
        if (!answer.last) continue;
      }
      waiting.delete(answer.id);
      if (answer.error) entry.reject(new SourceError(answer.error));
      else entry.resolve({ meta: answer.meta ?? null, bytes: answer.buffer === undefined || answer.buffer === null ? null : copyOf(buffers[answer.buffer]) });
    }
  }

  model.on("msg:custom", hear);
  return {
    ask: (name, parameters, signal) => open({ name, parameters }, signal, undefined),
    stream: (name, body, onEvent, signal) => open({ name, body }, signal, onEvent).then(() => undefined),
    close: () => model.off("msg:custom", hear),
  };
}

function copyOf(/** @type {DataView} */ view) {
  return /** @type {ArrayBuffer} */ (view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

/**
 * A question as one string, parameters in alphabetical order: `tile?col=0&head=1&...`.
 * @param {string} name
 * @param {Record<string, any>} parameters
 */
export function questionKey(name, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `${name}?${given.map(([key, value]) => `${key}=${value}`).sort().join("&")}`;
}
