// A picture as large as the screen allows, and its neighbours. Knows what a picture is, not how it
// came about.

import { h, icon, iconButton, openDialog } from "./dom.js";

/** Show `pictures[index]`; a picture is `{url, caption, name, actions}`, actions `[icon, label, f]`. */
export function openViewer(pictures, index) {
  let shown = index;
  const image = h("img", { class: "large" });
  const caption = h("p", { class: "viewer-caption" });
  const actions = h("div", { class: "bar" });
  const move = (step) => {
    shown = (shown + step + pictures.length) % pictures.length;
    show();
  };
  const arrows = pictures.length > 1
    ? [iconButton("left", "Previous picture", () => move(-1)), iconButton("right", "Next picture", () => move(1))]
    : [];

  function show() {
    const picture = pictures[shown];
    image.src = picture.url;
    image.alt = picture.caption;
    caption.textContent = picture.caption;
    actions.replaceChildren(
      ...arrows,
      h("span", { class: "grow" }),
      ...picture.actions.map(([name, label, act]) =>
        h("button", { type: "button", class: "quiet", on: { click: () => { dialog.close(); act(); } } }, icon(name), label),
      ),
    );
  }

  const dialog = openDialog("Picture", { className: "viewer" }, h("div", { class: "stage" }, image), caption, actions);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  image.addEventListener("load", () => image.classList.toggle("crisp", image.naturalWidth <= 128));
  show();
}
