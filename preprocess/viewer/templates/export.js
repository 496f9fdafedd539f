"use strict";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("[tabindex='0']")) return;
  const step = { ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 }[event.key];
  if (!step) return;
  const articles = [...document.querySelectorAll("article")];
  const current = articles.findIndex((article) => "#" + article.id === decodeURIComponent(location.hash));
  const target = articles[current < 0 ? 0 : current + step];
  if (target) { event.preventDefault(); location.hash = target.id; }
});
