// One round on the page: its question with images, its answer, and the buttons under both.

import { showPicture } from "./picture_dialog.js";
import { appendVisible, showVisible } from "./visible.js";

const FLUSH_MS = 30;
const BUTTONS = ["edit", "retry", "ids", "copy"];

export class RoundView {
  /** number: from 1. actions: {edit(), retry(), ids(), copy()}, called without arguments. grown: after the page grew. */
  constructor(round, number, actions, grown) {
    this.round = round;
    this.grown = grown;
    this.element = document.getElementById("round").content.firstElementChild.cloneNode(true);
    this.parts = Object.fromEntries([...this.element.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    for (const name of BUTTONS) this.parts[name].addEventListener("click", actions[name]);
    this.parts.questionTitle.textContent = `Question ${number}`;
    this.parts.answerTitle.textContent = `Answer ${number}`;
    this.parts.questionTitle.id = `question-${number}`; // which the buttons are described by
    for (const name of BUTTONS) this.parts[name].setAttribute("aria-describedby", `question-${number}`);
    showVisible(this.parts.question, round.question);
    this.parts.question.hidden = !round.question;
    this.parts.pictures.append(...round.pictures.map((picture, index) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.append(picture.element(`Image ${index + 1}`));
      button.addEventListener("click", () => showPicture(picture));
      item.append(button);
      return item;
    }));
    this.drawn = "";
    this.pending = "";
  }

  /** Add a piece of the answer. Pieces are drawn together, a few times in a second. */
  piece(text) {
    this.pending += text;
    this.timer ??= setTimeout(() => this.flush(), FLUSH_MS);
  }

  /** Show the round as it is now. isBusy: its answer is being generated. isLast: no round follows it. */
  update({ isBusy, isLast, isLocked }) {
    const { round, parts } = this;
    clearTimeout(this.timer);
    this.timer = undefined;
    this.pending = ""; // it is part of round.answer
    if (this.drawn !== (round.answer ?? "")) { // else a person's selection in it would be lost
      this.drawn = round.answer ?? "";
      showVisible(parts.answer, this.drawn);
    }
    parts.answer.setAttribute("aria-busy", String(isBusy));
    parts.waiting.hidden = !(isBusy && round.answer === null);
    parts.empty.hidden = isBusy || round.answer !== "";
    showVisible(parts.note, round.note);
    parts.note.hidden = !round.note;
    parts.note.classList.toggle("fault", round.isFault);
    parts.usage.textContent = isBusy ? "" : usageText(round);
    for (const name of BUTTONS) parts[name].disabled = isLocked;
    parts.retry.hidden = !isLast;
    parts.copy.hidden = !round.answer;
    parts.actions.hidden = isBusy;
  }

  flush() {
    appendVisible(this.parts.answer, this.pending);
    this.drawn += this.pending;
    this.parts.waiting.hidden = true;
    this.pending = "";
    this.timer = undefined;
    this.grown();
  }
}

function usageText({ usage, firstSeconds, seconds }) {
  if (!usage) return "";
  const count = (number) => number.toLocaleString("en");
  const first = firstSeconds === null ? "" : `, the first after ${firstSeconds.toFixed(1)} s`;
  const time = seconds === null ? "" : ` in ${seconds.toFixed(1)} s${first}`;
  const cached = usage.prompt_tokens_details?.cached_tokens;
  return `${count(usage.completion_tokens)} tokens${time} · prompt: ${count(usage.prompt_tokens)} tokens${cached ? `, ${count(cached)} cached` : ""}`;
}
