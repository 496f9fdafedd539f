// Copying texts, also where the page is not at a secure address and the browser has no clipboard API.

/** Whether the text is in the clipboard now. within: an element that may have the focus, such as an open dialog. */
export async function copyText(text, within = document.body) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // not allowed; the older way may be
    }
  }
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.className = "aside";
  area.setAttribute("aria-hidden", "true");
  area.value = text;
  within.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isCopied;
}
