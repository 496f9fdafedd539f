// The form in which a question is written, with its images; also used to edit a question that was asked before.

import { Picture, isPicture, listenForFiles } from "./pictures.js";
import { showPicture } from "./picture_dialog.js";

export class Composer {
  /**
   * form: the element. actions: {send(draft, edited), stop(), ids(draft, edited), refused(text), editing(index or null)};
   * a draft is {question, pictures}, edited the index of the round that it replaces, or null.
   */
  constructor(form, actions) {
    this.form = form;
    this.actions = actions;
    this.parts = Object.fromEntries([...form.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    this.pictures = [];
    this.edited = null;
    this.draftBefore = null;
    this.isBusy = false;
    const { text, choose, file, send, stop, ids, cancel } = this.parts;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    text.addEventListener("input", () => this.show());
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // composing: Enter chooses a character
      event.preventDefault();
      this.send();
    });
    send.addEventListener("click", () => text.focus());
    stop.addEventListener("click", () => {
      actions.stop();
      text.focus();
    });
    ids.addEventListener("click", () => actions.ids(this.draft, this.edited));
    cancel.addEventListener("click", () => this.endEdit());
    choose.addEventListener("click", () => file.click());
    listenForFiles(file, (files) => this.add(files));
    this.show();
  }

  get draft() {
    return { question: this.parts.text.value.trim(), pictures: [...this.pictures] };
  }

  /** Edit the question of round `index`. What was being written comes back when the edit ends. */
  edit(round, index) {
    this.draftBefore ??= this.draft;
    this.edited = index;
    this.fill(round);
    this.parts.editing.textContent = `Editing question ${index + 1}. Sending it removes its answer and all that follows.`;
    this.actions.editing(index);
    this.parts.text.focus();
  }

  endEdit() {
    if (this.edited === null) return;
    this.edited = null;
    this.fill(this.draftBefore);
    this.draftBefore = null;
    this.actions.editing(null);
    this.parts.text.focus();
  }

  /** Write nothing, or a draft that could not be sent. */
  fill({ question, pictures } = { question: "", pictures: [] }) {
    this.parts.text.value = question;
    this.pictures = [...pictures];
    this.show();
  }

  /** isBusy: an answer is being generated, so that nothing can be sent. */
  setBusy(isBusy) {
    this.isBusy = isBusy;
    this.show();
  }

  add(files) {
    const refused = files.filter((file) => !isPicture(file)).map((file) => file.name);
    if (refused.length) this.actions.refused(`${refused.join(", ")}: not added, since the model reads only images`);
    this.pictures.push(...files.filter(isPicture).map((file) => new Picture(file)));
    this.show();
    this.parts.text.focus();
  }

  send() {
    const { draft, edited } = this;
    if (this.isBusy || !isSomething(draft) || !this.actions.send(draft, edited)) return;
    if (edited === null) this.fill(); else this.endEdit();
  }

  show() {
    const { text, pictures, send, stop, ids, edit } = this.parts;
    const isEmpty = !isSomething(this.draft);
    send.hidden = this.isBusy;
    send.disabled = isEmpty;
    stop.hidden = !this.isBusy;
    ids.disabled = isEmpty || this.isBusy;
    edit.hidden = this.edited === null;
    pictures.hidden = !this.pictures.length;
    pictures.replaceChildren(...this.pictures.map((picture, index) => this.thumbnail(picture, index)));
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight}px`; // CSS limits it
  }

  thumbnail(picture, index) {
    const item = document.createElement("li");
    const look = document.createElement("button");
    look.type = "button";
    look.append(picture.element(`Image ${index + 1}`));
    look.addEventListener("click", () => showPicture(picture));
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "remove";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove image ${index + 1}: ${picture.name}`);
    remove.addEventListener("click", () => {
      this.pictures.splice(index, 1);
      this.show();
      const next = this.parts.pictures.querySelectorAll(".remove")[Math.min(index, this.pictures.length - 1)];
      (next ?? this.parts.text).focus();
    });
    item.append(look, remove);
    return item;
  }
}

function isSomething({ question, pictures }) {
  return Boolean(question || pictures.length);
}
