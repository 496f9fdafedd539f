// Texts of models, servers and files as the page shows them: never as HTML, and with control characters written out.
//
// Written out are controls other than tab and line feed, lone surrogates, what overrides the direction of other text, and
// characters that have no width. Joiners stay, since scripts and emoji need them.

const CONTROL =
  /([\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff])/;

/** The text with control characters written out, such as \x1b. */
export function visible(text) {
  return String(text).split(CONTROL).map((piece, index) => (index % 2 ? escaped(piece) : piece)).join("");
}

/** Add a text at the end of an element; control characters get elements of their own. */
export function appendVisible(element, text) {
  String(text).split(CONTROL).forEach((piece, index) => {
    if (!piece) return;
    if (index % 2) {
      const mark = document.createElement("span");
      mark.className = "control";
      mark.textContent = escaped(piece);
      element.append(mark);
    } else if (element.lastChild?.nodeType === Node.TEXT_NODE) {
      element.lastChild.appendData(piece);
    } else {
      element.append(piece);
    }
  });
}

/** Show a text in an element instead of what it contains. */
export function showVisible(element, text) {
  element.replaceChildren();
  appendVisible(element, text);
}

function escaped(character) {
  const code = character.charCodeAt(0);
  return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}
