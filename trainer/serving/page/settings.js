// The settings of answers: a form in a dialog, kept in this browser. An empty field is left to the server.

const STORED = "settings";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

export class Settings {
  /** dialog: it contains the form. changed: called after each change. */
  constructor(dialog, changed) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.changed = changed;
    for (const [name, value] of Object.entries(read())) {
      if (this.form.elements[name]) this.form.elements[name].value = value;
    }
    this.form.addEventListener("input", () => this.keep());
    this.form.addEventListener("reset", () => setTimeout(() => this.keep())); // the event comes before the reset
  }

  /** What is set, under the names of OpenAI's API: {temperature, top_p, max_tokens, seed}. */
  get sampling() {
    const set = NUMBERS.filter((name) => this.form.elements[name].value !== "");
    return Object.fromEntries(set.map((name) => [name, this.form.elements[name].valueAsNumber]));
  }

  get system() {
    return this.form.elements.system.value.trim();
  }

  /** In a few words; "" if nothing is set. */
  get summary() {
    const words = Object.entries(this.sampling).map(([name, value]) => `${name.replace("_", " ")} ${value}`);
    return [...words, ...(this.system ? ["system prompt"] : [])].join(" · ");
  }

  /** Whether all fields are right; if not, the dialog opens at the first that is not. */
  check() {
    if (this.form.checkValidity()) return true;
    if (!this.dialog.open) this.dialog.showModal();
    this.form.reportValidity();
    return false;
  }

  keep() {
    const values = Object.fromEntries([...NUMBERS, "system"].map((name) => [name, this.form.elements[name].value]));
    try { localStorage.setItem(STORED, JSON.stringify(values)); } catch { /* then they last until the page is left */ }
    this.changed();
  }
}

function read() {
  try { return JSON.parse(localStorage.getItem(STORED)) ?? {}; } catch { return {}; }
}
