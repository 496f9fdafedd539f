// The conversation of this tab in the browser's storage (IndexedDB), so that a reload of the page keeps it.
//
// Entries: {tab, time_ms, rounds}. Those that nobody changed for a day are deleted when any page is opened. Where the
// browser has no storage, nothing is kept.

import { Picture } from "./pictures.js";

const DAY_MS = 24 * 60 * 60 * 1000;
const STORE = "conversations";

/** The rounds of this tab; [] if there are none. */
export async function loadRounds() {
  try {
    const store = (await open()).transaction(STORE, "readwrite").objectStore(STORE);
    for (const entry of await done(store.getAll())) {
      if (entry.time_ms < Date.now() - DAY_MS) store.delete(entry.tab);
    }
    const entry = await done(store.get(tab()));
    return (entry?.rounds ?? []).map((round) => ({
      ...round,
      pictures: round.pictures.map(({ file, name }) => new Picture(file, name)),
    }));
  } catch {
    return [];
  }
}

/** Keep the rounds instead of those before. */
export async function storeRounds(rounds) {
  const plain = rounds.map((round) => ({
    ...round,
    pictures: round.pictures.map(({ file, name }) => ({ file, name })),
  }));
  try {
    const store = (await open()).transaction(STORE, "readwrite").objectStore(STORE);
    await done(rounds.length ? store.put({ tab: tab(), time_ms: Date.now(), rounds: plain }) : store.delete(tab()));
  } catch {
    // a reload then starts with an empty page
  }
}

let database = null; // a promise

function open() {
  database ??= new Promise((resolve) => {
    const request = indexedDB.open("chat", 1);
    request.addEventListener("upgradeneeded", () => request.result.createObjectStore(STORE, { keyPath: "tab" }));
    resolve(done(request));
  });
  return database;
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });
}

function tab() {
  let name = sessionStorage.getItem("tab");
  if (!name) {
    name = [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("");
    sessionStorage.setItem("tab", name);
  }
  return name;
}
