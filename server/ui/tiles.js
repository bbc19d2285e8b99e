// One picture while it is drawn and after: the rows that are there, how far it is, what can be done
// with it. Knows the events of a drawing, not who asked for it.

import { h, iconButton, seconds } from "./dom.js";

export class Tile {
  /** `picture` is `{seed, url}`, url null until it is drawn; `actions` are `[icon, label, f]`. */
  constructor(picture, { prompt, actions, onOpen }) {
    this.picture = picture;
    this.prompt = prompt;
    this.actions = actions;
    this.image = h("img", { alt: "", hidden: true });
    this.veil = h("div", { class: "veil" });
    this.bar = h("div", { class: "progress", role: "progressbar", "aria-label": `Picture with seed ${picture.seed}`, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0 }, h("span"));
    this.note = h("span", { class: "tile-note", text: "waiting" });
    this.seed = h("span", { class: "tile-seed", text: `seed ${picture.seed}` });
    this.tools = h("div", { class: "tile-tools" });
    this.frame = h("button", { type: "button", class: "frame", "aria-label": `Drawing: ${prompt}`, disabled: true, on: { click: onOpen } }, this.image, this.veil);
    this.element = h("li", { class: "tile" }, this.frame, this.bar, h("div", { class: "tile-foot" }, this.seed, this.note), this.tools);
    this.image.addEventListener("load", () => this.image.classList.toggle("crisp", this.image.naturalWidth <= 128));
    if (picture.url) this.complete(picture.url);
  }

  /** Half a picture: what is below its last row, at `share` of its height, is grey and stays veiled. */
  partial(url, share) {
    this.image.src = url;
    this.image.hidden = false;
    this.veil.style.top = `${100 * share}%`;
    this.element.classList.add("drawing");
  }

  progress({ num_codes: codes, total_codes: total, remaining_s: remaining }) {
    const percent = Math.round((100 * codes) / total);
    this.element.classList.add("drawing");
    this.bar.setAttribute("aria-valuenow", percent);
    this.bar.firstChild.style.width = `${percent}%`;
    this.note.textContent = remaining === null || remaining === undefined ? `${percent} %` : `${percent} % · ${seconds(remaining)} left`;
  }

  complete(url) {
    this.picture.url = url;
    this.image.src = url;
    this.image.hidden = false;
    this.image.alt = this.prompt;
    this.frame.disabled = false;
    this.frame.setAttribute("aria-label", `Full screen: ${this.prompt}, seed ${this.picture.seed}`);
    this.end("done", "");
    this.tools.replaceChildren(...this.actions.map(([name, label, act]) => iconButton(name, label, act)));
  }

  /** It will not be finished; what there is stays. */
  fail(word) {
    if (!this.picture.url) this.end("failed", word);
  }

  end(state, note) {
    this.element.classList.remove("drawing");
    this.element.classList.add(state);
    this.bar.hidden = true;
    this.note.textContent = note;
    if (state === "done") this.veil.remove();
  }
}
