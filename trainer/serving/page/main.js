// The chat page: what its parts do together.

import { copyText } from "./clipboard.js";
import { Composer } from "./composer.js";
import { answered, chatBody, exportedLine, newRound, promptBody, unanswered } from "./conversation.js";
import { askKey } from "./key_dialog.js";
import { showPrompt } from "./prompt_dialog.js";
import { RoundView } from "./round_view.js";
import { BrokenAnswer, Fault, fetchModels, fetchPrompt, key, streamAnswer } from "./server.js";
import { Settings } from "./settings.js";
import { loadRounds, storeRounds } from "./stored_rounds.js";
import { showVisible } from "./visible.js";

const NEAR_PX = 80;
const REPLACED = "Another question replaces this one.";
const element = (id) => document.getElementById(id);

let rounds = [];
let isLoaded = false; // the rounds that were stored
let isSendAwaited = false; // a question was sent before that
let views = [];
let running = null; // the AbortController of the answer that is being generated
let modelName = null; // a promise
let isFollowing = true; // the page stays at its end while an answer grows
let removed = []; // the conversation that Undo brings back

const settings = new Settings(element("settings"), showSettings);
const composer = new Composer(element("composer"), {
  send,
  stop,
  ids: (draft, edited) => showIds([...roundsBefore(edited), newRound({ ...draft, system: settings.system })]),
  refused: say,
  editing: markEdited,
});

element("new").addEventListener("click", startNew);
element("undo").addEventListener("click", undo);
element("export").addEventListener("click", exportConversation);
element("dismiss").addEventListener("click", () => say(""));
element("open-settings").addEventListener("click", () => settings.dialog.showModal());
for (const button of document.querySelectorAll("dialog [data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (running) stop(); else composer.endEdit();
});
document.addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
  isFollowing = scrollHeight - scrollTop - clientHeight < NEAR_PX;
});

showSettings();
rounds = await loadRounds();
const last = rounds.at(-1);
if (last?.answer === null && !last.note) last.note = `The page was left before this was answered. ${REPLACED}`;
isLoaded = true;
draw();
follow();
if (isSendAwaited) composer.send();
model().catch((error) => say(faultText(error)));

/** Ask a question. edited: the index of the round that it replaces, or null. Returns whether it was sent. */
function send(draft, edited) {
  if (!settings.check()) return false;
  if (!isLoaded) {
    isSendAwaited = true; // it is in the form until then
    return false;
  }
  rounds = [...roundsBefore(edited), newRound({ ...draft, system: settings.system })];
  run();
  return true;
}

function retry(round) {
  if (!settings.check()) return;
  round.system = settings.system;
  run();
  element("text").focus();
}

function stop() {
  running?.abort();
}

/** Generate the answer to the last round. */
async function run() {
  const round = rounds.at(-1);
  const abort = new AbortController();
  running = abort;
  removed = [];
  Object.assign(round, { ...unanswered });
  say("");
  draw();
  isFollowing = true;
  follow();
  storeRounds(rounds);
  try {
    await withKey(() => receive(round, abort.signal));
  } catch (error) {
    Object.assign(round, faultOf(error, round));
  }
  if (round.answer !== null) round.answer = round.answer.trim(); // as in training
  running = null;
  draw();
  follow();
  announce(round.note || "The answer is complete.");
  storeRounds(rounds);
}

/** Add what the server sends to the round. Throws what streamAnswer throws. */
async function receive(round, signal) {
  const name = await model();
  const body = await chatBody({ model: name, rounds, sampling: settings.sampling });
  const view = views.at(-1);
  const started = performance.now();
  for await (const { piece, reason, usage } of streamAnswer(body, signal)) {
    if (piece) {
      round.firstSeconds ??= secondsSince(started);
      round.answer = (round.answer ?? "") + piece;
      view.piece(piece);
    }
    if (reason === "length") round.note = "Cut off: max tokens, or what the model can read, allows no more.";
    if (usage) round.usage = usage;
  }
  round.answer ??= "";
  round.seconds = secondsSince(started);
}

function secondsSince(time_ms) {
  return (performance.now() - time_ms) / 1000;
}

/** The note of a round whose answer ended early. */
function faultOf(error, round) {
  const isAnswered = round.answer !== null;
  if (error.name === "AbortError") {
    return { note: isAnswered ? "Stopped. The answer so far stays in the conversation." : `Stopped before the first word. ${REPLACED}` };
  }
  return { note: [faultText(error), isAnswered ? "" : REPLACED].join(" "), isFault: true };
}

function faultText(error) {
  if (error.name === "NotReadableError") return "An image has changed or was deleted since it was added. Edit the question to remove it.";
  if (!(error instanceof Fault || error instanceof BrokenAnswer)) {
    console.error(error);
    return `This page failed: ${error.message}`;
  }
  return error.retryAfter_s ? `${error.message} Try again in ${error.retryAfter_s} s.` : error.message;
}

/** The name of the model that answers; asked for once. Throws Fault. */
function model() {
  modelName ??= withKey(fetchModels).then(
    ([name]) => {
      document.title = `${name} - chat`;
      showVisible(element("model"), name);
      return name;
    },
    (error) => {
      modelName = null; // the next request asks again
      throw error;
    },
  );
  return modelName;
}

/** What `act` returns; while the server refuses the key, the person is asked for one. */
async function withKey(act) {
  for (;;) {
    try {
      return await act();
    } catch (error) {
      if (error.status !== 401) throw error;
      const value = await askKey(Boolean(key.value));
      if (value === null) throw error;
      key.set(value);
    }
  }
}

/** Show what the model reads for the answer to the last of these rounds. */
async function showIds(asked) {
  say("");
  try {
    const pictures = asked.flatMap((round) => round.pictures);
    const body = await promptBody({ model: await model(), rounds: asked });
    showPrompt(await withKey(() => fetchPrompt(body)), pictures);
  } catch (error) {
    say(faultText(error));
  }
}

function roundsBefore(edited) {
  return edited === null ? answered(rounds) : rounds.slice(0, edited);
}

function startNew() {
  stop();
  composer.endEdit();
  removed = rounds;
  rounds = [];
  draw();
  storeRounds(rounds);
  element("text").focus();
}

function undo() {
  rounds = removed;
  removed = [];
  draw();
  storeRounds(rounds);
  element("text").focus();
}

async function exportConversation() {
  try {
    const link = document.createElement("a");
    const file = new Blob([await exportedLine(rounds)], { type: "application/jsonl" });
    link.href = URL.createObjectURL(file);
    link.download = `chat-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the download has begun by then
  } catch (error) {
    say(faultText(error));
  }
}

async function copyAnswer(round) {
  announce((await copyText(round.answer)) ? "The answer is copied." : "The browser did not allow copying.");
}

function draw() {
  let same = 0;
  while (same < rounds.length && views[same]?.round === rounds[same]) same += 1;
  for (const view of views.splice(same)) view.element.remove();
  for (const round of rounds.slice(same)) {
    const index = views.length;
    const actions = {
      edit: () => composer.edit(round, index),
      retry: () => retry(round),
      ids: () => showIds([...rounds.slice(0, index), { ...round, ...unanswered }]),
      copy: () => copyAnswer(round),
    };
    const view = new RoundView(round, index + 1, actions, follow);
    views.push(view);
    element("rounds").append(view.element);
  }
  views.forEach((view, index) => {
    const isLast = index === views.length - 1;
    view.update({ isBusy: Boolean(running) && isLast, isLast, isLocked: Boolean(running) });
  });
  element("welcome").hidden = rounds.length > 0;
  element("undo-bar").hidden = !removed.length;
  element("new").disabled = !rounds.length;
  element("export").disabled = Boolean(running) || !answered(rounds).length;
  composer.setBusy(Boolean(running));
}

function markEdited(edited) {
  views.forEach((view, index) => view.element.classList.toggle("dropped", edited !== null && index > edited));
  views.forEach((view, index) => view.element.classList.toggle("edited", index === edited));
}

function follow() {
  if (isFollowing) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
}

function say(text) {
  showVisible(element("notice-text"), text);
  element("notice").hidden = !text;
}

/** For people who do not see the page. */
function announce(text) {
  showVisible(element("status"), text);
}

function showSettings() {
  element("settings-summary").textContent = settings.summary;
}
