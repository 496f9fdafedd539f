// Images that a person adds: chosen, dropped or pasted.
//
// Rule: the bytes of a file are sent as they are. Nothing is resized or encoded again here, since the model's own
// preprocessing starts with the file.

/** An image: its file, and an address under which this page shows it. */
export class Picture {
  constructor(file, name = file.name) {
    this.file = file;
    this.name = name || "pasted image";
    this.address = URL.createObjectURL(file);
  }

  /** The file as a data URI. Throws NotReadableError if it has changed or is gone. */
  async dataUri() {
    this.encoded ??= await encode(this.file); // asked for in each later round
    return this.encoded;
  }

  /** A <figure> with the image; a file that the browser cannot show has its name instead. */
  element(label) {
    const figure = document.createElement("figure");
    figure.className = "picture";
    const image = document.createElement("img");
    image.alt = `${label}: ${this.name}`;
    image.title = this.name;
    image.addEventListener("error", () => {
      const name = document.createElement("span");
      name.className = "unseen";
      name.textContent = this.name;
      image.replaceWith(name);
    });
    image.src = this.address;
    figure.append(image);
    return figure;
  }
}

/** Whether a file can be an image that the model reads. Drawings (SVG) have no pixels. */
export function isPicture(file) {
  return file.type.startsWith("image/") && file.type !== "image/svg+xml";
}

/**
 * Call `add(files)` with the files that are pasted or dropped on the page or chosen with an <input type=file>. The
 * attribute data-dropping of the body is set while files are dragged over the page.
 */
export function listenForFiles(input, add) {
  input.addEventListener("change", () => {
    add([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    // Office programs put an image of copied text next to the text
    if (!files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    add(files);
  });
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
  const showDropping = (isDropping) => document.body.toggleAttribute("data-dropping", isDropping);
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    showDropping(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) showDropping(false); // else only the element below the pointer changed
  });
  document.addEventListener("drop", (event) => {
    showDropping(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    add([...event.dataTransfer.files]);
  });
}

function encode(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
