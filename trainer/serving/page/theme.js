// Light or dark: as the system, until the switch is used. Not a module, since it runs before the first paint.
"use strict";

(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  function read() {
    try { return localStorage.getItem("theme"); } catch { return null; } // storage may be switched off
  }

  function store(theme) {
    try {
      if (theme) localStorage.setItem("theme", theme); else localStorage.removeItem("theme");
    } catch { /* the choice then lasts until the page is left */ }
  }

  function apply(theme) {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme; else delete root.dataset.theme;
  }

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  }

  apply(read());

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      button.setAttribute("aria-pressed", String(isDark()));
      button.title = isDark() ? "Light colours" : "Dark colours";
    };
    button.addEventListener("click", () => {
      const theme = isDark() ? "light" : "dark";
      const isSystems = (theme === "dark") === system.matches;
      apply(isSystems ? null : theme);
      store(isSystems ? null : theme);
      show();
    });
    system.addEventListener("change", show);
    show();
  });
})();
