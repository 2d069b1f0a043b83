// Calls of the server's API: JSON, streams of chat completions, errors with the server's own words.

let key = "";
export function setKey(value) { key = value; }

export class HttpError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function headers(json) {
  const all = {};
  if (json) all["Content-Type"] = "application/json";
  // A header holds bytes of Latin-1 only; what is not ASCII is no key of ours, and the server says so.
  if (key !== "") all.Authorization = `Bearer ${key.replace(/[^\x21-\x7e]/g, "?")}`;
  return all;
}

async function checked(response) {
  if (response.ok) return response;
  const text = await response.text();
  let message = text.slice(0, 500);
  try { message = JSON.parse(text).error.message; } catch { /* a proxy's own page, say */ }
  throw new HttpError(response.status, message, response.headers.get("Retry-After"));
}

export async function getText(path, signal) {
  return (await checked(await fetch(path, {headers: headers(false), cache: "no-store", signal}))).text();
}

export async function getJson(path) { return JSON.parse(await getText(path)); }

function post(path, body, signal) {
  return fetch(path, {method: "POST", headers: headers(true), body: JSON.stringify(body), signal});
}

export async function postJson(path, body, signal) {
  return (await checked(await post(path, body, signal))).json();
}

// The data of each server-sent event of a response.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

// Calls on({text}), on({usage}), on({finish}) as they come; `seconds` is the time since the question was sent. Fails when
// the stream does.
export async function streamChat(body, signal, on) {
  const sent = performance.now();
  const seconds = () => (performance.now() - sent) / 1000;
  const request = {...body, stream: true, stream_options: {include_usage: true}};
  const response = await checked(await post("v1/chat/completions", request, signal));
  for await (const data of events(response)) {
    if (data === "[DONE]") return on({done: true, seconds: seconds()});
    const chunk = JSON.parse(data);
    if (chunk.error) throw new HttpError(0, chunk.error.message);
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) on({text: choice.delta.content, seconds: seconds()});
    if (choice?.finish_reason) on({finish: choice.finish_reason, seconds: seconds()});
    if (chunk.usage) on({usage: chunk.usage, seconds: seconds()});
  }
  throw new HttpError(0, "The connection ended before the answer did.");
}

// A title and a text for people.
export function apiError(error) {
  if (!(error instanceof HttpError)) return ["No answer", "The server cannot be reached."];
  const titles = {0: "The answer broke off", 400: "The server refused the question", 401: "An API key is needed", 403: "This API key is not accepted",
    404: "Not found", 413: "Too large", 429: "The server is busy", 503: "The server takes no questions right now", 504: "Out of time"};
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return [titles[error.status] ?? `The server failed (${error.status})`, error.message + wait];
}
