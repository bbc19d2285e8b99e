// The public API, and nothing but: requests, streams, and errors in words. Knows no element.

const KEY = "janus-api-key";

let key = stored(sessionStorageOrNull()) || stored(localStorageOrNull()) || "";

export const apiKey = () => key;
export const isKeyKept = () => Boolean(stored(localStorageOrNull()));

/** Use `value` from now on: for this tab, and beyond it only if `keep` says so. */
export function setApiKey(value, { keep = false } = {}) {
  key = value.trim();
  for (const [storage, wanted] of [[sessionStorageOrNull(), true], [localStorageOrNull(), keep]]) {
    if (!storage) continue;
    if (key && wanted) storage.setItem(KEY, key);
    else storage.removeItem(KEY);
  }
}

/** What went wrong: `title` in our words, `message` in the server's. */
export class ApiError extends Error {
  constructor(title, message, details = {}) {
    super(message);
    this.title = title;
    this.status = details.status ?? 0;
    this.code = details.code ?? null;
    this.requestId = details.requestId ?? null;
    this.retryAfterS = details.retryAfterS ?? null;
    this.stopped = details.stopped ?? false;
  }
}

const stopped = () => new ApiError("Stopped", "", { stopped: true });

/** Fetch; an answer that is no 2xx, or none at all, becomes an ApiError. */
export async function call(path, { body, signal, method } = {}) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw stopped();
    throw new ApiError("The server cannot be reached", "It may have been stopped, or the network is down.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export async function get(path, signal) {
  return (await call(path, { signal })).json();
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy's page, or nothing: the status has to do.
  }
  const retryAfterS = Number(response.headers.get("retry-after")) || null;
  return new ApiError(
    titleOf(response.status, error.code),
    error.message || `The server answered with status ${response.status} and no explanation.`,
    { status: response.status, code: error.code, requestId: response.headers.get("x-request-id"), retryAfterS },
  );
}

function titleOf(status, code) {
  if (status === 401) return "This server wants an API key";
  if (status === 403) return "This key may not do that";
  if (status === 404 && code === "model_not_found") return "This server has no such model";
  if (status === 421) return "This server does not go by the name in the address bar";
  if (status === 413) return "That is too large for this server";
  if (status === 429) return code === "queue_full" ? "The server is busy" : "Too many requests";
  if (status === 503) return code === "draining" ? "The server is shutting down" : "The server cannot work right now";
  if (code === "context_length_exceeded") return "This is longer than the model can read";
  if (status >= 500) return "The server failed";
  return "The server refused this request";
}

/** The events of a stream, as `{event, data}`; a connection that breaks is an ApiError. */
async function* eventsOf(response, requestId) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      let end;
      while ((end = buffer.indexOf("\n\n")) >= 0) {
        const parsed = parseEvent(buffer.slice(0, end));
        buffer = buffer.slice(end + 2);
        if (parsed) yield parsed;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw stopped();
    throw broken(requestId);
  } finally {
    reader.cancel().catch(() => {});
  }
}

export function parseEvent(frame) {
  let event = "message";
  const data = [];
  for (const line of frame.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? { event, data: data.join("\n") } : null;
}

const broken = (requestId) =>
  new ApiError("The connection broke", "The server went away before it was done. What had arrived is kept.", { requestId });

function failure(error, requestId) {
  return new ApiError(titleOf(error.type === "invalid_request_error" ? 400 : 500, error.code), error.message, {
    code: error.code,
    requestId,
  });
}

/** Ask; `onText` gets every piece. Resolves to what is known at the end: usage, seed, times. */
export async function streamChat(body, { signal, onText, onStart = () => {} }) {
  const started = performance.now();
  const response = await call("/v1/chat/completions", { body, signal });
  const requestId = response.headers.get("x-request-id");
  onStart(requestId);
  const result = { requestId, usage: null, seed: null, reason: null, firstS: null, tokensPerS: null };
  let firstAt = null;
  let lastAt = null;
  let isDone = false;
  for await (const { data } of eventsOf(response, requestId)) {
    if (data === "[DONE]") {
      isDone = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw failure(chunk.error, requestId);
    if (chunk.usage) result.usage = chunk.usage;
    if (chunk.seed !== undefined) result.seed = chunk.seed;
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) {
      lastAt = performance.now();
      firstAt ??= lastAt;
      onText(choice.delta.content);
    }
    result.reason = choice?.finish_reason ?? result.reason;
  }
  if (!isDone) throw signal?.aborted ? stopped() : broken(requestId);
  if (firstAt !== null) result.firstS = (firstAt - started) / 1000;
  const tokens = result.usage?.completion_tokens ?? 0;
  // The pace of writing; an answer that came in one piece has none of its own.
  if (tokens > 1 && lastAt > firstAt) result.tokensPerS = (1000 * (tokens - 1)) / (lastAt - firstAt);
  else if (tokens) result.tokensPerS = (1000 * tokens) / (performance.now() - started);
  return result;
}

/** Draw; `onEvent` gets partial images, progress and completed pictures under these short names. */
export async function streamPictures(path, body, { signal, onEvent, onStart = () => {} }) {
  const response = await call(path, { body, signal });
  const requestId = response.headers.get("x-request-id");
  const estimate = Number(response.headers.get("x-janus-estimated-s"));
  onStart({ requestId, estimatedS: estimate > 0 ? estimate : null });
  let missing = body.n ?? 1;
  for await (const { event, data } of eventsOf(response, requestId)) {
    const payload = JSON.parse(data);
    if (payload.error) throw failure(payload.error, requestId);
    const name = event.slice(event.indexOf(".") + 1);
    onEvent(name, payload);
    if (name === "completed") missing -= 1;
  }
  if (missing > 0) throw signal?.aborted ? stopped() : broken(requestId);
  return { requestId };
}

function stored(storage) {
  return storage?.getItem(KEY) ?? null;
}

// Touching a storage throws where the browser forbids it.
function sessionStorageOrNull() {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
}

function localStorageOrNull() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}
