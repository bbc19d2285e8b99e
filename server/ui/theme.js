// The theme before the first paint, so that a dark page never flashes light. A classic script on
// purpose: modules run after the document has been read.
"use strict";
(() => {
  let theme = "auto";
  try {
    theme = localStorage.getItem("janus-theme") || "auto";
  } catch {
    // Storage may be forbidden; then the system's choice holds.
  }
  document.documentElement.dataset.theme = theme;
})();
