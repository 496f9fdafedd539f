// What the model reads, in full: each id with its text, and the positions of each image.

import { copyText } from "./clipboard.js";
import { appendVisible } from "./visible.js";

const SIGNS = { " ": "␣", "\n": "⏎", "\t": "⇥" };

/**
 * Open the dialog. prompt: as the server answers: {ids, tokens, images: [{first, positions, tiles}], control_ids, limit}.
 * pictures: those of the conversation, in order.
 */
export function showPrompt(prompt, pictures) {
  const dialog = document.getElementById("prompt");
  const part = (name) => dialog.querySelector(`[data-part=${name}]`);
  const seen = prompt.images.reduce((sum, image) => sum + image.positions, 0);
  const words = [`${count(prompt.ids.length, "id")}`];
  if (prompt.images.length) words.push(`${number(seen)} of them for ${count(prompt.images.length, "image")}`);
  if (prompt.limit) words.push(`the model reads up to ${number(prompt.limit)}`);
  part("summary").textContent = `${words.join("; ")}.`;
  part("tokens").replaceChildren(...itemsOf(prompt, pictures));
  part("said").textContent = "";
  const copy = async (text, what) => {
    part("said").textContent = (await copyText(text, dialog)) ? `${what} copied` : "The browser did not allow copying";
  };
  part("copyIds").onclick = () => copy(JSON.stringify(prompt.ids), "Ids");
  part("copyAll").onclick = () => copy(JSON.stringify(prompt), "Ids and texts");
  dialog.showModal();
}

function itemsOf({ ids, tokens, images, control_ids }, pictures) {
  const control = new Set(control_ids);
  const items = [];
  for (let index = 0, image = 0; index < ids.length; ) {
    if (images[image]?.first === index) {
      items.push(imageItem(images[image], image, ids[index], pictures[image]));
      index += images[image].positions;
      image += 1;
    } else {
      items.push(tokenItem(ids[index], tokens[index], control.has(ids[index])));
      index += 1;
    }
  }
  return items;
}

function tokenItem(id, text, isControl) {
  const item = document.createElement("li");
  item.classList.toggle("special", isControl);
  const shown = document.createElement("span");
  shown.className = "token";
  for (const piece of text.split(/([ \n\t])/)) {
    if (SIGNS[piece]) shown.append(sign(SIGNS[piece])); else if (piece) appendVisible(shown, piece);
  }
  if (!text) shown.append(sign("∅"));
  item.append(shown, idElement(id));
  return item;
}

function imageItem({ first, positions, tiles }, index, id, picture) {
  const item = document.createElement("li");
  item.className = "image";
  if (picture) item.append(picture.element(`Image ${index + 1}`));
  const words = document.createElement("span");
  const cut = tiles > 1 ? ` in ${tiles} tiles` : "";
  words.textContent = `image ${index + 1}: positions ${number(first)} to ${number(first + positions - 1)} (${number(positions)}${cut})`;
  item.append(words, idElement(id));
  return item;
}

function sign(text) {
  const element = document.createElement("span");
  element.className = "sign";
  element.textContent = text;
  return element;
}

function idElement(id) {
  const element = document.createElement("span");
  element.className = "id";
  element.textContent = String(id);
  return element;
}

function count(amount, noun) {
  return `${number(amount)} ${noun}${amount === 1 ? "" : "s"}`;
}

function number(amount) {
  return amount.toLocaleString("en");
}
