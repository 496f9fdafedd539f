// Requests to the server, and what went wrong with them in words.

import { eventsOf } from "./event_stream.js";

const KEY = "key";

const WORDS = {
  0: "The server cannot be reached. Is it still running?",
  401: "The server needs a key.",
  413: "This is more than the server accepts:",
  429: "The server is busy.",
  503: "The server does not answer questions now.",
};

/** A request that failed. status: of HTTP; 0 if no answer came. detail: what the server said. retryAfter_s: or null. */
export class Fault extends Error {
  constructor(status, detail = "", retryAfter_s = null) {
    const words = status < 500 ? "The server refused this request:" : `The server failed (HTTP ${status}):`;
    super([WORDS[status] ?? words, detail].filter(Boolean).join(" "));
    this.status = status;
    this.retryAfter_s = retryAfter_s;
  }
}

/** An answer that ended before its end. */
export class BrokenAnswer extends Error {}

/** The key that requests carry; kept until the tab is closed. */
export const key = {
  value: read(),
  set(value) {
    this.value = value;
    try { sessionStorage.setItem(KEY, value); } catch { /* then it lasts until the page is left */ }
  },
};

/** The ids of the models. Throws Fault. */
export async function fetchModels() {
  const answer = await json(await request("v1/models"));
  return answer.data.map((model) => model.id);
}

/** What the model reads: {ids, tokens, images: [{first, positions, tiles}], limit}. Throws Fault. */
export async function fetchPrompt(body) {
  return json(await request("v1/prompt", body));
}

/**
 * An answer while it is generated: {piece}, then {reason}, then {usage}. Throws Fault, BrokenAnswer, and AbortError if
 * the signal ends it.
 */
export async function* streamAnswer(body, signal) {
  const response = await request("v1/chat/completions", body, signal);
  let hasEnded = false;
  try {
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new BrokenAnswer(`The answer failed: ${event.error.message}`);
      const choice = event.choices?.[0];
      if (choice?.delta?.content) yield { piece: choice.delta.content };
      if (choice?.finish_reason) {
        hasEnded = true;
        yield { reason: choice.finish_reason };
      }
      if (event.usage) yield { usage: event.usage };
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof BrokenAnswer) throw error;
    throw new BrokenAnswer("The connection to the server ended before the answer did.");
  }
  if (!hasEnded) throw new BrokenAnswer("The connection to the server ended before the answer did.");
}

async function request(path, body, signal) {
  const headers = {};
  if (key.value) headers.Authorization = `Bearer ${key.value}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0);
  }
  if (!response.ok) throw new Fault(response.status, await detailOf(response), retryAfterOf(response));
  return response;
}

async function json(response) {
  try {
    return await response.json();
  } catch {
    throw new BrokenAnswer("What the server sent cannot be read.");
  }
}

async function detailOf(response) {
  const text = await response.text().catch(() => "");
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text.slice(0, 500); // of a proxy, perhaps
  }
}

function retryAfterOf(response) {
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  return Number.isFinite(seconds) ? seconds : null;
}

function read() {
  try { return sessionStorage.getItem(KEY); } catch { return null; }
}
