// Elements, icons, toasts and the clipboard. Everything that shows text does so through text nodes:
// nothing in this folder ever turns a string into markup.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  history: "M3.5 12a8.5 8.5 0 1 0 2.600-6.100M3.500 4.500v4h4M12 7.500V12l3 2",
  key: "M14.500 9.500a4.500 4.500 0 1 0-4.200 4.500L12 15.700h2v2h2v2h3.500v-3.200l-5.300-5.300c.2-.5.3-1.100.3-1.700zM9 8.500h.01",
  auto: "M12 3.500a8.500 8.500 0 1 0 0 17zM12 3.500a8.500 8.500 0 0 1 0 17",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2.500v2M12 19.500v2M2.500 12h2M19.500 12h2M5.300 5.300l1.400 1.400M17.300 17.300l1.400 1.400M18.700 5.300l-1.400 1.400M6.700 17.300l-1.400 1.400",
  dark: "M20 14.500A8.500 8.500 0 0 1 9.500 4a8.500 8.500 0 1 0 10.500 10.500z",
  attach: "M4.500 6.500a2 2 0 0 1 2-2h11a2 2 0 0 1 2 2v11a2 2 0 0 1-2 2h-11a2 2 0 0 1-2-2zM4.500 16l4.500-4.500 5 5M13 14.500l2-2 4.500 4.500M15.500 8.500h.01",
  sliders: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  code: "M8.500 7.500L4 12l4.500 4.500M15.500 7.500L20 12l-4.500 4.500",
  plus: "M12 5v14M5 12h14",
  copy: "M9 9h10.500v10.500H9zM15 9V4.500H4.500V15H9",
  again: "M20 12a8 8 0 1 1-2.600-5.900M20 3.500v4h-4",
  edit: "M4.500 19.500l1-4L16 5l3 3L8.500 18.500zM14 7l3 3",
  close: "M6 6l12 12M18 6L6 18",
  full: "M4.500 9V4.500H9M15 4.500h4.500V9M19.500 15v4.500H15M9 19.500H4.500V15",
  download: "M12 4v11M7.500 11l4.500 4.500 4.500-4.500M4.500 19.500h15",
  seed: "M5 8.500l7-4 7 4v7l-7 4-7-4zM5 8.500l7 4 7-4M12 12.500v7",
  vary: "M4.500 4.500h6v6h-6zM13.500 4.500h6v6h-6zM4.500 13.500h6v6h-6zM13.500 16.500h6M16.500 13.500v6",
  ask: "M4.500 5.500h15v10.500h-8l-4 3.500V16h-3zM9 9.500h6M9 12.500h4",
  left: "M14.500 5.500L8 12l6.500 6.500",
  right: "M9.500 5.500L16 12l-6.500 6.500",
  trash: "M5 7h14M10 7V4.500h4V7M7 7l.8 12.500h8.400L17 7M10.500 10.500v6M13.500 10.500v6",
  dice: "M5 5h14v14H5zM9 9h.01M15 9h.01M12 12h.01M9 15h.01M15 15h.01",
  upload: "M12 15.500v-11M7.500 8.500L12 4l4.500 4.500M4.500 19.500h15",
};

export const $ = (id) => document.getElementById(id);

/** An element; `text` becomes a text node, `on` maps events to listeners, the rest are attributes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

export function setIcon(button, name) {
  button.replaceChildren(icon(name));
}

/** A round button that shows an icon and is called `label`. */
export function iconButton(name, label, onClick, props = {}) {
  return h(
    "button",
    { type: "button", class: "icon", "aria-label": label, title: label, on: { click: onClick }, ...props },
    icon(name),
  );
}

/** Tell a screen reader something that the eye sees elsewhere. */
export function announce(text) {
  const region = $("announce");
  region.textContent = "";
  requestAnimationFrame(() => (region.textContent = text));
}

export function toast(text, { bad = false } = {}) {
  const element = h("p", { class: bad ? "toast bad" : "toast", text, role: bad ? "alert" : "status" });
  $("toasts").append(element);
  setTimeout(() => element.remove(), bad ? 7000 : 3500);
}

/** Copy and say so. The clipboard proper needs a secure context, which a LAN address is not. */
export async function copyText(text, what = "Copied.") {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "hidden", value: text });
    const host = document.querySelector("dialog[open]") ?? document.body;
    host.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) return toast("The browser does not let this page copy.", { bad: true });
  }
  toast(what);
}

export function download(name, href) {
  const link = h("a", { href, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

export function downloadText(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  download(name, url);
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A modal dialog with a heading and a way out. It leaves the document when it is closed. */
export function openDialog(title, { className = "", onClose = () => {} } = {}, ...children) {
  const close = () => dialog.close();
  const dialog = h(
    "dialog",
    { class: `dialog ${className}`, "aria-label": title },
    h("header", { class: "dialog-head" }, h("h2", { text: title }), iconButton("close", "Close", close)),
    ...children,
  );
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Let a textarea be as high as its text, within what the stylesheet allows. */
export function autosize(area) {
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  area.addEventListener("input", fit);
  return fit;
}

export function seconds(value) {
  if (value < 0.95) return `${Math.max(1, Math.round(value * 1000))} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  if (value < 100) return `${Math.round(value)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

export function rate(value) {
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

export const newId = () => `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;

/** A seed that survives JSON's numbers everywhere. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];
