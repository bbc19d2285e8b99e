// The side that draws: a prompt, its settings, and runs of pictures, the newest first.

import { streamPictures } from "./api.js";
import { openCode } from "./code.js";
import { Controls, showIdeas } from "./controls.js";
import { $, announce, autosize, download, h, iconButton, newId, plural, randomSeed, rate, seconds, setIcon, toast } from "./dom.js";
import { fileName } from "./images.js";
import { problemCard } from "./problem.js";
import { countWork, onCard, server } from "./status.js";
import { keep } from "./store.js";
import { Tile } from "./tiles.js";
import { openViewer } from "./viewer.js";

const GENERATE = "/v1/images/generations";
const EDIT = "/v1/images/edits";
const STRENGTH = 0.75;
const NUM_VARIATIONS = 4;

const SHAPES = ["a large red circle on a white background", "a blue star to the left of a yellow square", "a small green triangle on gray", "a purple diamond above a black cross"];
const SCENES = ["A close-up of a red fox in the first snow, golden hour", "A lighthouse on a cliff, watercolour", "A bowl of ramen, studio light, steam rising", "A tiny robot watering a bonsai, isometric"];

/** The half of the page that draws. `onAsk` takes a picture to the other half, `onKey` asks for a key. */
export class Draw {
  constructor({ onAsk, onKey }) {
    this.onAsk = onAsk;
    this.onKey = onKey;
    this.active = new Set();
    this.controls = new Controls($("draw-panel"), "draw", [
      { name: "n", label: "Pictures", kind: "range", min: 1, max: 10, step: 1, fallback: 4 },
      { name: "guidance_scale", label: "Guidance", kind: "range", min: 1, max: 12, step: 0.1, fallback: 5, hint: "How closely to follow the words; 1 is unguided." },
      { name: "temperature", label: "Temperature", kind: "range", min: 0, max: 2, step: 0.05, fallback: 1, hint: "Lower is safer, higher more varied." },
      { name: "top_p", label: "Top-p", kind: "range", min: 0.05, max: 1, step: 0.05, fallback: 1 },
      { name: "seed", label: "Seed", kind: "seed" },
      { name: "negative_prompt", label: "Avoid", kind: "text", placeholder: "What shall not be there" },
    ]);
    // On a phone the pictures come before what nobody has to change.
    $("draw-more").open = !matchMedia("(max-width: 60rem)").matches;
    this.fit = autosize($("prompt"));
    setIcon($("draw-code"), "code");
    $("draw-code").addEventListener("click", () => openCode(GENERATE, this.body(this.controls.value("seed") ?? randomSeed())));
    $("draw-form").addEventListener("submit", (event) => {
      event.preventDefault();
      // A key that sends must not stop: there is no submitter then.
      if (!this.active.size) this.submit();
      else if (event.submitter) this.stop();
    });
    onCard((card) => this.learn(card));
  }

  learn(card) {
    this.controls.learn({ n: Math.min(4, card.limits.max_pictures), ...card.defaults.picture }, { n: card.limits.max_pictures });
    const prompts = parseInt(card.picture.size) <= 128 ? SHAPES : SCENES;
    showIdeas($("draw-ideas"), prompts.map((label) => ({ label, icon: "seed" })), ({ label }) => {
      this.setPrompt(label);
      this.submit();
    });
  }

  setPrompt(prompt) {
    $("prompt").value = prompt;
    this.fit();
  }

  /** The request as it is sent. `n` is always said: the default here is not the API's. */
  body(seed) {
    return { ...this.base($("prompt").value.trim()), n: this.controls.value("n"), ...this.controls.chosen(), seed, ...this.streaming() };
  }

  base(prompt) {
    return server.card ? { model: server.card.id, prompt } : { prompt };
  }

  streaming() {
    const rows = server.card?.picture.codes_per_row ?? 24;
    const most = server.card?.limits.max_partial_images ?? 3;
    // The most previews that end where rows do.
    let previews = Math.min(most, rows - 1);
    while (previews > 1 && rows % (previews + 1)) previews -= 1;
    return { stream: true, partial_images: Math.max(0, previews), progress: true };
  }

  submit() {
    if (!$("prompt").value.trim()) {
      $("prompt").focus();
      toast("Describe a picture first.");
      return;
    }
    this.start(GENERATE, this.body(this.controls.value("seed") ?? randomSeed()));
  }

  vary(run, picture) {
    const chosen = { guidance_scale: run.body.guidance_scale, temperature: run.body.temperature, top_p: run.body.top_p, negative_prompt: run.body.negative_prompt };
    const body = {
      ...this.base(run.body.prompt),
      images: [{ image_url: picture.url }],
      strength: STRENGTH,
      n: Math.min(NUM_VARIATIONS, server.card?.limits.max_pictures ?? NUM_VARIATIONS),
      ...JSON.parse(JSON.stringify(chosen)),
      seed: randomSeed(),
      ...this.streaming(),
    };
    this.start(EDIT, body);
  }

  start(path, body) {
    const seeds = Array.from({ length: body.n ?? 1 }, (_, index) => body.seed + index);
    const item = { id: newId(), kind: "draw", title: body.prompt, path, body, pictures: seeds.map((seed) => ({ seed, url: null })), note: null };
    const run = new Run(item, this);
    this.show(run);
    this.draw(run);
  }

  /** A run of the history, as it was. */
  restore(item) {
    $(`run-${item.id}`)?.remove();
    this.setPrompt(item.body.prompt);
    this.show(new Run(structuredClone(item), this));
  }

  show(run) {
    $("draw-welcome").hidden = true;
    $("runs").prepend(run.element);
    if (matchMedia("(max-width: 60rem)").matches) run.element.scrollIntoView({ block: "start" });
  }

  async draw(run) {
    this.active.add(run);
    this.update();
    countWork(1);
    await run.draw();
    this.active.delete(run);
    this.update();
    countWork(-1);
  }

  stop() {
    for (const run of this.active) run.stop();
  }

  update() {
    const button = $("go-draw");
    button.textContent = this.active.size ? "Stop" : "Draw";
    button.classList.toggle("stop", this.active.size > 0);
  }
}

/** One request and its pictures. `item` is what the history keeps of it. */
class Run {
  constructor(item, draw) {
    this.item = item;
    this.side = draw;
    this.path = item.path;
    this.body = item.body;
    this.tiles = item.pictures.map((picture) => this.tile(picture));
    this.note = h("p", { class: "note", text: item.note ?? "" });
    this.grid = h("ul", { class: "grid", "aria-label": "Pictures" }, ...this.tiles.map((tile) => tile.element));
    this.problem = h("div");
    this.element = h(
      "li",
      { class: "run", id: `run-${item.id}` },
      h(
        "div",
        { class: "run-head" },
        h("div", { class: "run-words" }, h("h2", { class: "run-title", text: this.body.prompt }), this.note),
        iconButton("code", "Show code of these pictures", () => openCode(this.path, this.body)),
        iconButton("again", "Draw again with other seeds", () => draw.start(this.path, { ...this.body, seed: randomSeed() })),
        iconButton("close", "Remove from view", () => this.close()),
      ),
      this.problem,
      this.grid,
    );
    this.grid.dataset.count = this.tiles.length;
    if (item.note !== null) for (const tile of this.tiles) tile.fail("not drawn");
  }

  tile(picture) {
    const actions = this.actionsOf(picture);
    const tile = new Tile(picture, {
      prompt: this.body.prompt,
      onOpen: () => this.open(picture),
      actions: [["full", "Full screen", () => this.open(picture)], ...actions],
    });
    return tile;
  }

  actionsOf(picture) {
    return [
      ["ask", "Ask about this image", () => this.side.onAsk({ url: picture.url, name: fileName(this.body.prompt, picture.seed) })],
      ["seed", "Reuse seed", () => this.reuse(picture)],
      ["vary", "Variations", () => this.side.vary(this, picture)],
      ["download", "Download", () => download(fileName(this.body.prompt, picture.seed), picture.url)],
    ];
  }

  open(picture) {
    const drawn = this.item.pictures.filter(({ url }) => url);
    const shown = drawn.map((each) => ({ url: each.url, caption: `${this.body.prompt} · seed ${each.seed}`, actions: this.actionsOf(each) }));
    openViewer(shown, drawn.indexOf(picture));
  }

  reuse(picture) {
    this.side.setPrompt(this.body.prompt);
    for (const name of ["guidance_scale", "temperature", "top_p", "negative_prompt"]) {
      if (this.body[name] !== undefined) this.side.controls.set(name, this.body[name]);
    }
    this.side.controls.set("seed", picture.seed);
    $("draw-more").open = true;
    $("draw-seed").focus();
    toast(`Seed ${picture.seed} is set: the same words draw the same picture.`);
  }

  async draw() {
    this.controller = new AbortController();
    const started = performance.now();
    this.problem.replaceChildren();
    this.note.textContent = "waiting …";
    let firstAt = null;
    const onEvent = (name, event) => {
      firstAt ??= performance.now();
      this.take(name, event);
    };
    try {
      await streamPictures(this.path, this.body, { signal: this.controller.signal, onEvent, onStart: (facts) => this.begun(facts) });
      const tookS = (performance.now() - started) / 1000;
      const codes = (server.card?.picture.num_codes ?? 0) * this.tiles.length;
      this.item.note = [plural(this.tiles.length, "picture"), seconds(tookS), codes ? `${rate(codes / tookS)} codes/s` : null].filter(Boolean).join(" · ");
      announce(`${plural(this.tiles.length, "picture")} drawn in ${seconds(tookS)}.`);
    } catch (error) {
      this.fail(error);
    }
    this.note.textContent = this.item.note;
    if (this.item.pictures.some(({ url }) => url)) await keep(this.item);
  }

  begun({ estimatedS }) {
    this.note.textContent = estimatedS ? `drawing, about ${seconds(estimatedS)} …` : "drawing …";
  }

  take(name, event) {
    const tile = this.tiles[event.image_index];
    if (name === "progress") tile.progress(event);
    else if (name === "partial_image") tile.partial(urlOf(event), this.shareOf(event));
    else if (name === "completed") tile.complete(urlOf(event));
  }

  /** How much of a preview is drawn: they are spread evenly over what is not kept. */
  shareOf(event) {
    const kept = this.path === EDIT ? 1 - this.body.strength : 0;
    return kept + ((1 - kept) * (event.partial_image_index + 1)) / (this.body.partial_images + 1);
  }

  stop() {
    this.controller.abort();
  }

  fail(error) {
    if (error.title === undefined) throw error;
    this.item.note = error.stopped ? "stopped" : "not finished";
    for (const tile of this.tiles) tile.fail(error.stopped ? "stopped" : "not drawn");
    if (error.stopped) {
      announce("Stopped.");
      return;
    }
    const onRetry = () => {
      this.element.remove();
      this.side.start(this.path, this.body);
    };
    this.problem.replaceChildren(problemCard(error, { onRetry, onKey: this.side.onKey }));
    if (!this.tiles.some(({ picture }) => picture.url)) this.grid.hidden = !this.grid.querySelector("img:not([hidden])");
  }

  close() {
    if (this.side.active.has(this)) this.stop();
    this.element.remove();
    $("draw-welcome").hidden = $("runs").childElementCount > 0;
  }
}

const urlOf = (event) => `data:image/${event.output_format};base64,${event.b64_json}`;
