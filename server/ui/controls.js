// Sliders and fields whose defaults are the server's. Only what was moved is sent, so that a
// request says what a person chose and nothing else.

import { h, icon, iconButton, randomSeed } from "./dom.js";

/**
 * A panel of controls. A spec is `{name, label, kind, min, max, step, fallback, hint}`; kinds are
 * range, seed and text. The default of a range comes later, from the server.
 */
export class Controls {
  constructor(host, prefix, specs) {
    this.fields = new Map();
    for (const spec of specs) {
      const field = spec.kind === "range" ? new Range(prefix, spec) : spec.kind === "seed" ? new Seed(prefix, spec) : new Text(prefix, spec);
      this.fields.set(spec.name, field);
      host.append(field.element);
    }
    const reset = h("button", { type: "button", class: "quiet", text: "Reset all", on: { click: () => this.reset() } });
    host.append(h("div", { class: "bar" }, h("span", { class: "grow" }), reset));
  }

  /** `defaults` and `maxima` by name, as the server tells them. */
  learn(defaults, maxima = {}) {
    for (const [name, field] of this.fields) field.learn?.(defaults[name], maxima[name]);
  }

  /** What differs from the defaults, ready for a request. */
  chosen() {
    const values = {};
    for (const [name, field] of this.fields) {
      const value = field.chosen();
      if (value !== null) values[name] = value;
    }
    return values;
  }

  value(name) {
    return this.fields.get(name).value;
  }

  set(name, value) {
    this.fields.get(name)?.set(value);
  }

  reset() {
    for (const field of this.fields.values()) field.reset();
  }
}

class Range {
  constructor(prefix, spec) {
    this.spec = spec;
    this.fallback = spec.fallback;
    this.max = spec.max;
    const id = `${prefix}-${spec.name}`;
    const limits = { min: spec.min, max: spec.max, step: spec.step };
    this.slider = h("input", { type: "range", id, ...limits, "aria-describedby": `${id}-hint`, on: { input: () => this.set(this.slider.value) } });
    this.number = h("input", { type: "number", "aria-label": `${spec.label}, as a number`, ...limits, on: { change: () => this.set(this.number.value) } });
    this.back = iconButton("again", `Reset ${spec.label.toLowerCase()}`, () => this.reset());
    this.element = h(
      "div",
      { class: "control" },
      h("div", { class: "control-head" }, h("label", { for: id, text: spec.label }), this.back, this.number),
      this.slider,
      h("p", { class: "note", id: `${id}-hint`, text: spec.hint ?? "" }),
    );
    this.set(spec.fallback);
  }

  learn(fallback, max) {
    const wasDefault = this.value === this.fallback;
    if (max !== undefined) {
      this.max = max;
      this.slider.max = this.number.max = max;
    }
    if (fallback !== undefined) this.fallback = Math.min(Math.max(fallback, this.spec.min), this.max);
    this.set(wasDefault ? this.fallback : this.value);
  }

  get value() {
    return Number(this.slider.value);
  }

  set(value) {
    const number = Number(value);
    const inside = Number.isFinite(number) && value !== "" ? Math.min(Math.max(number, this.spec.min), this.max) : this.fallback;
    this.slider.value = inside;
    this.number.value = this.slider.value;
    const share = (this.value - this.spec.min) / (this.max - this.spec.min || 1);
    this.slider.style.setProperty("--share", `${100 * share}%`);
    this.back.hidden = this.value === this.fallback;
  }

  reset() {
    this.set(this.fallback);
  }

  chosen() {
    return this.value === this.fallback ? null : this.value;
  }
}

/** A seed, or nothing, which means another one each time. */
class Seed {
  constructor(prefix, spec) {
    const id = `${prefix}-seed`;
    this.input = h("input", { id, type: "text", inputmode: "numeric", pattern: "[0-9]{1,15}", placeholder: "random", autocomplete: "off" });
    const roll = iconButton("dice", "Choose a seed at random", () => this.set(randomSeed()));
    const clear = iconButton("close", "Clear the seed", () => this.set(null));
    this.element = h(
      "div",
      { class: "control" },
      h("div", { class: "control-head" }, h("label", { for: id, text: spec.label })),
      h("div", { class: "joined" }, this.input, roll, clear),
    );
  }

  get value() {
    const text = this.input.value.trim();
    return /^\d{1,15}$/.test(text) ? Number(text) : null;
  }

  set(value) {
    this.input.value = value === null || value === undefined ? "" : String(value);
  }

  reset() {
    this.set(null);
  }

  chosen() {
    return this.value;
  }
}

class Text {
  constructor(prefix, spec) {
    const id = `${prefix}-${spec.name}`;
    this.area = h("textarea", { id, rows: 2, placeholder: spec.placeholder ?? "" });
    this.element = h(
      "div",
      { class: "control" },
      h("div", { class: "control-head" }, h("label", { for: id, text: spec.label })),
      this.area,
    );
  }

  get value() {
    return this.area.value.trim() || null;
  }

  set(value) {
    this.area.value = value ?? "";
  }

  reset() {
    this.set(null);
  }

  chosen() {
    return this.value;
  }
}

/** Chips with things to try. */
export function showIdeas(host, ideas, onPick) {
  host.replaceChildren(
    ...ideas.map((idea) => h("button", { type: "button", class: "idea", on: { click: () => onPick(idea) } }, icon(idea.icon ?? "ask"), idea.label)),
  );
}
