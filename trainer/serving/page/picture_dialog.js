// An image in its full size.

/** Open it; Escape, the button and a click close it. */
export function showPicture(picture) {
  const dialog = document.getElementById("picture");
  const figure = picture.element("Image");
  const caption = document.createElement("figcaption");
  caption.textContent = picture.name;
  figure.append(caption);
  dialog.querySelector("figure").replaceWith(figure);
  dialog.onclick = () => dialog.close();
  dialog.showModal();
}
