// The page as a whole: its two halves, the keys, what is dropped and pasted, the theme, the key.

import { apiKey, isKeyKept, setApiKey } from "./api.js";
import { Ask } from "./ask.js";
import { Draw } from "./draw.js";
import { $, h, openDialog, setIcon, toast } from "./dom.js";
import { openHistory } from "./history.js";
import { imagesIn } from "./images.js";
import { openStatus, refresh } from "./status.js";

const THEMES = ["auto", "light", "dark"];
const SIDES = ["ask", "draw"];

const ask = new Ask({
  onKey: openKey,
  onDraw: () => {
    choose("draw");
    $("prompt").focus();
  },
});
const draw = new Draw({
  onAsk: (image) => {
    ask.carry(image);
    choose("ask");
    $("question").focus();
  },
  onKey: openKey,
});

// --- the two halves -------------------------------------------------------------------------------

function choose(side) {
  for (const name of SIDES) {
    const tab = $(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === side));
    tab.tabIndex = name === side ? 0 : -1;
    $(name).hidden = name !== side;
  }
  // Not an element's id: the browser would scroll there, and begin its order of focus there.
  history.replaceState(null, "", `#/${side}`);
}

const chosen = () => SIDES.find((name) => !$(name).hidden);

for (const name of SIDES) {
  const tab = $(`tab-${name}`);
  tab.addEventListener("click", () => {
    choose(name);
    if (matchMedia("(pointer: fine)").matches) $(name === "ask" ? "question" : "prompt").focus();
  });
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = SIDES.find((side) => side !== name);
    choose(other);
    $(`tab-${other}`).focus();
  });
}

// --- keys -----------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    ask.stop();
    draw.stop();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $(chosen() === "ask" ? "ask-form" : "draw-form").requestSubmit();
  }
});

for (const id of ["question", "prompt"]) {
  $(id).addEventListener("keydown", (event) => {
    const isPlain = !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey && !event.isComposing;
    // Where there is no keyboard to hold Shift on, Enter is a new line.
    if (event.key === "Enter" && isPlain && matchMedia("(pointer: fine)").matches) {
      event.preventDefault();
      event.target.form.requestSubmit();
    }
  });
}

// --- images from outside --------------------------------------------------------------------------

let depth = 0;
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

function take(files) {
  if (!files.length) {
    toast("There is no image in that.", { bad: true });
    return;
  }
  choose("ask");
  ask.attach(files);
}

document.addEventListener("dragenter", (event) => {
  if (!hasFiles(event)) return;
  depth += 1;
  $("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!hasFiles(event)) return;
  depth -= 1;
  if (depth <= 0) $("drop").hidden = true;
});
document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  depth = 0;
  $("drop").hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  take(imagesIn(event.dataTransfer));
});
document.addEventListener("paste", (event) => {
  const files = imagesIn(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  take(files);
});

// --- theme, key, history, status ------------------------------------------------------------------

function showTheme() {
  const theme = document.documentElement.dataset.theme;
  setIcon($("theme"), theme);
  $("theme").setAttribute("aria-label", `Theme: ${theme}`);
  $("theme").title = `Theme: ${theme}`;
}

$("theme").addEventListener("click", () => {
  const { dataset } = document.documentElement;
  dataset.theme = THEMES[(THEMES.indexOf(dataset.theme) + 1) % THEMES.length];
  try {
    localStorage.setItem("janus-theme", dataset.theme);
  } catch {
    // Then it holds as long as the page does.
  }
  showTheme();
});

function openKey() {
  const field = h("input", { type: "password", id: "key", value: apiKey(), autocomplete: "off", spellcheck: "false" });
  const keep = h("input", { type: "checkbox", id: "keep-key", checked: isKeyKept() });
  const form = h(
    "form",
    { class: "stack", on: { submit: (event) => {
      event.preventDefault();
      setApiKey(field.value, { keep: keep.checked });
      dialog.close();
      refresh();
    } } },
    h("label", { class: "label", for: "key", text: "API key" }),
    field,
    h("label", { class: "check", for: "keep-key" }, keep, "Keep it in this browser"),
    h("p", { class: "note", text: "Sent to this server only. Unless it is kept, it is forgotten with this tab." }),
    h("div", { class: "bar" }, h("span", { class: "grow" }), h("button", { type: "submit", class: "go", text: "Use" })),
  );
  const dialog = openDialog("API key", { className: "small" }, form);
  field.focus();
}

setIcon($("open-history"), "history");
setIcon($("open-key"), "key");
$("open-history").addEventListener("click", () =>
  openHistory((item) => {
    const side = item.kind === "draw" ? draw : ask;
    side.restore(item);
    choose(item.kind);
  }),
);
$("open-key").addEventListener("click", openKey);
$("status").addEventListener("click", openStatus);
document.addEventListener("visibilitychange", () => document.hidden || refresh());

showTheme();
choose(location.hash === "#/draw" ? "draw" : "ask");
refresh();
