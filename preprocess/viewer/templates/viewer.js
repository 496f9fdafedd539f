// Keys, parts that are loaded when they are opened, and searches that continue by themselves. Pages work without it.
"use strict";

function part(text) {
  return new DOMParser().parseFromString(text, "text/html").getElementById("part");
}

async function load(link) {
  const answer = await fetch(link);
  return part(await answer.text());
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, button, [tabindex='0']")) return;
  const relation = { ArrowLeft: "prev", k: "prev", ArrowRight: "next", j: "next", u: "up" }[event.key];
  const link = relation && document.querySelector(`a[rel="${relation}"]`);
  if (link) { event.preventDefault(); link.click(); }
});

for (const details of document.querySelectorAll("details[data-load]")) {
  const fill = async () => {
    if (!details.open || details.dataset.loaded) return;
    details.dataset.loaded = "yes";
    const fallback = details.querySelector("p");
    const loaded = await load(details.dataset.load).catch(() => null);
    if (loaded) { loaded.removeAttribute("id"); fallback.replaceWith(loaded); }
  };
  details.addEventListener("toggle", fill);
  fill();
}

async function searchOn() {
  for (let link = document.querySelector("a[data-continue]"); link; link = document.querySelector("a[data-continue]")) {
    const found = await load(link.href).catch(() => null);
    if (!found) return;
    const cards = found.querySelector(".cards");
    if (cards && link.rel === "next") document.querySelector("#part .cards").append(...cards.children);
    if (cards && link.rel === "prev") document.querySelector("#part .cards").prepend(...cards.children);
    const pages = found.querySelector(".pages");
    const back = `a[rel="${link.rel === "next" ? "prev" : "next"}"]`; // from where the search began
    const kept = document.querySelector(`#part .pages ${back}`);
    pages.querySelector(back)?.remove();
    if (kept) pages.prepend(kept);
    document.querySelector("#part .pages").replaceWith(pages);
    if (document.querySelectorAll("#part .card").length >= 24) return;
  }
}

searchOn();
