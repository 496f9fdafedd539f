// Asking for the server's key.

/** Ask for a key. was: whether one was refused. Returns it; null if the person closes the dialog. */
export function askKey(wasRefused) {
  const dialog = document.getElementById("key");
  const form = dialog.querySelector("form");
  const input = form.elements.key;
  dialog.querySelector("[data-part=refused]").hidden = !wasRefused;
  input.value = "";
  return new Promise((resolve) => {
    let value = null;
    form.onsubmit = (event) => {
      event.preventDefault();
      value = input.value.trim() || null;
      dialog.close();
    };
    dialog.onclose = () => resolve(value);
    dialog.showModal();
  });
}
