// The side that answers: a conversation with images, streamed, that can be stopped, edited and
// asked again.

import { streamChat } from "./api.js";
import { openCode } from "./code.js";
import { Controls, showIdeas } from "./controls.js";
import { $, announce, autosize, copyText, h, iconButton, newId, plural, randomSeed, rate, seconds, setIcon, toast } from "./dom.js";
import { readImage } from "./images.js";
import { markdown } from "./markdown.js";
import { problemCard } from "./problem.js";
import { countWork, onCard, server } from "./status.js";
import { keep } from "./store.js";
import { openViewer } from "./viewer.js";

const CHAT = "/v1/chat/completions";

/** The half of the page that asks. `onKey` asks for a key, `onDraw` shows the other half. */
export class Ask {
  constructor({ onKey, onDraw }) {
    this.onKey = onKey;
    this.onDraw = onDraw;
    this.tray = [];
    this.running = null;
    this.item = newItem();
    this.controls = new Controls($("ask-panel"), "ask", [
      { name: "temperature", label: "Temperature", kind: "range", min: 0, max: 2, step: 0.05, fallback: 0, hint: "0 always gives the likeliest answer." },
      { name: "top_p", label: "Top-p", kind: "range", min: 0.05, max: 1, step: 0.05, fallback: 1 },
      { name: "max_tokens", label: "Longest answer", kind: "range", min: 16, max: 4096, step: 16, fallback: 4096, hint: "In tokens; the context may hold fewer." },
      { name: "seed", label: "Seed", kind: "seed" },
      { name: "system", label: "System prompt", kind: "text", placeholder: "Instead of the model's own" },
    ]);
    for (const [id, name] of [["attach", "attach"], ["ask-options", "sliders"], ["ask-code", "code"], ["new-chat", "plus"]]) setIcon($(id), name);
    this.fit = autosize($("question"));
    this.listen();
    onCard((card) => this.learn(card));
  }

  listen() {
    $("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      // A key that sends must not stop: there is no submitter then.
      if (!this.running) this.submit();
      else if (event.submitter) this.stop();
    });
    $("attach").addEventListener("click", () => $("files").click());
    $("files").addEventListener("change", () => {
      this.attach([...$("files").files]);
      $("files").value = "";
    });
    $("ask-options").addEventListener("click", () => {
      const panel = $("ask-panel");
      panel.hidden = !panel.hidden;
      $("ask-options").setAttribute("aria-expanded", String(!panel.hidden));
    });
    $("ask-code").addEventListener("click", () => {
      const draft = this.draft();
      openCode(CHAT, this.body(draft ? [...this.item.turns, draft] : this.item.turns));
    });
    $("new-chat").addEventListener("click", () => this.restart());
  }

  learn(card) {
    const most = card.max_model_len;
    this.controls.learn({ ...card.defaults.text, max_tokens: most }, { max_tokens: most });
    const ideas = [
      { label: "Choose an image", icon: "attach", act: () => $("files").click() },
      { label: "Draw one to ask about", icon: "vary", act: this.onDraw },
      { label: "What can you do?", icon: "ask", act: () => this.say("What can you do?") },
    ];
    showIdeas($("ask-ideas"), ideas, ({ act }) => act());
  }

  /** Put images into the tray; what is none is said. */
  async attach(files) {
    for (const file of files) {
      if (this.numImages() >= (server.card?.limits.max_images_per_request ?? Infinity)) {
        toast(`At most ${plural(server.card.limits.max_images_per_request, "image")} fit into a conversation here.`, { bad: true });
        break;
      }
      try {
        this.tray.push(await readImage(file, server.card?.limits));
      } catch (error) {
        toast(error.message, { bad: true });
      }
    }
    this.showTray();
    $("question").focus();
  }

  /** A picture that is here already, such as a drawing. */
  carry(image) {
    this.tray.push({ ...image });
    this.showTray();
    $("question").focus();
    announce("The picture is attached. Ask about it.");
  }

  numImages() {
    return this.item.turns.reduce((sum, turn) => sum + (turn.images?.length ?? 0), this.tray.length);
  }

  showTray() {
    $("tray").hidden = this.tray.length === 0;
    $("tray").replaceChildren(
      ...this.tray.map((image, index) =>
        h(
          "li",
          {},
          h("img", { src: image.url, alt: image.name }),
          iconButton("close", `Remove ${image.name}`, () => {
            this.tray.splice(index, 1);
            this.showTray();
            $("question").focus();
          }),
        ),
      ),
    );
  }

  /** The turn that would be sent now, or null if there is nothing in it. */
  draft() {
    const text = $("question").value.trim();
    return text || this.tray.length ? { role: "user", text, images: this.tray } : null;
  }

  say(text) {
    $("question").value = text;
    this.submit();
  }

  submit() {
    const turn = this.draft();
    if (!turn) {
      $("question").focus();
      toast("Ask something, or attach an image.");
      return;
    }
    if (!turn.text) turn.text = "Describe the image.";
    $("question").value = "";
    this.fit();
    this.tray = [];
    this.showTray();
    this.item.turns.push(turn);
    this.item.title = this.item.turns[0].text;
    this.answer();
  }

  /** The request for an answer to `turns`, as it is sent. */
  body(turns) {
    const { system, seed, ...chosen } = this.controls.chosen();
    const model = server.card ? { model: server.card.id } : {};
    // Where nothing is drawn at random, a seed would be idle.
    const drawn = this.controls.value("temperature") > 0 || seed !== undefined ? { seed: seed ?? randomSeed() } : {};
    const messages = messagesOf(turns, system);
    return { ...model, messages, ...chosen, ...drawn, stream: true, stream_options: { include_usage: true } };
  }

  /** The request that an answer came from, with the settings of then. */
  sent(turn, index) {
    return { ...turn.params, messages: messagesOf(this.item.turns.slice(0, index), turn.system) };
  }

  async answer() {
    const controller = (this.running = new AbortController());
    const item = this.item;
    const body = this.body(item.turns);
    const { messages, ...params } = body;
    const system = messages[0].role === "system" ? messages[0].content : undefined;
    const turn = { role: "assistant", text: "", note: "", params, system };
    item.turns.push(turn);
    this.update();
    this.show();
    const bubble = $("turns").lastElementChild;
    bubble.setAttribute("aria-busy", "true");
    const painter = new Painter(bubble.querySelector(".text"), turn);
    countWork(1);
    try {
      const onText = (piece) => painter.add(piece);
      const result = await streamChat(body, { signal: controller.signal, onText });
      turn.note = noteOf(result, body);
      announce(turn.text || "The answer is empty.");
    } catch (error) {
      if (error.title === undefined) throw error;
      turn.note = error.stopped ? "stopped" : "not finished";
      turn.error = error.stopped ? null : error;
      announce(error.stopped ? "Stopped." : error.title);
    } finally {
      painter.stop();
      if (this.running === controller) this.running = null;
    }
    if (this.item === item) this.show();
    this.update();
    countWork(-1);
    await keep(plain(item));
  }

  stop() {
    this.running?.abort();
  }

  update() {
    $("send").textContent = this.running ? "Stop" : "Ask";
    $("send").classList.toggle("stop", Boolean(this.running));
  }

  restart() {
    this.stop();
    this.item = newItem();
    this.show();
    $("question").focus();
  }

  /** A conversation of the history, to go on with. */
  restore(item) {
    this.stop();
    this.item = structuredClone(item);
    this.show();
  }

  /** Ask for the last answer again. */
  regenerate() {
    if (this.running) return;
    while (this.item.turns.at(-1)?.role === "assistant") this.item.turns.pop();
    if (this.controls.value("temperature") === 0) toast("At temperature 0 the answer is always the same; raise it in the settings for another one.");
    this.answer();
  }

  show() {
    $("ask-welcome").hidden = this.item.turns.length > 0;
    $("turns").replaceChildren(...this.item.turns.map((turn, index) => this.bubble(turn, index)));
    $("turns").lastElementChild?.scrollIntoView({ block: "end" });
  }

  bubble(turn, index) {
    const isUser = turn.role === "user";
    const text = h("div", { class: "text" });
    if (isUser) text.textContent = turn.text;
    else text.replaceChildren(...markdown(turn.text));
    const foot = h("div", { class: "turn-foot" });
    if (!isUser) foot.append(h("span", { class: "note", text: turn.note }));
    if (!this.running) foot.append(...this.actions(turn, index, text));
    const images = (turn.images ?? []).map((image) =>
      h(
        "button",
        { type: "button", class: "shown", "aria-label": `Full screen: ${image.name}`, on: { click: () => openViewer([{ url: image.url, caption: image.name, actions: [] }], 0) } },
        h("img", { src: image.url, alt: image.name }),
      ),
    );
    const problem = turn.error ? problemCard(turn.error, { onRetry: () => this.regenerate(), onKey: this.onKey }) : null;
    return h(
      "li",
      { class: `turn ${turn.role}` },
      h("h3", { class: "hidden", text: isUser ? "You" : "Answer" }),
      images.length ? h("div", { class: "shown-images" }, ...images) : null,
      turn.text || !problem ? text : null,
      problem,
      foot,
    );
  }

  actions(turn, index, text) {
    const copy = turn.text ? [iconButton("copy", "Copy", () => copyText(turn.text))] : [];
    if (turn.role === "user") return [...copy, iconButton("edit", "Edit", () => this.edit(turn, index, text))];
    const isLast = index === this.item.turns.length - 1;
    const code = iconButton("code", "Show code of this answer", () => openCode(CHAT, this.sent(turn, index)));
    return isLast ? [...copy, iconButton("again", "Regenerate", () => this.regenerate()), code] : [...copy, code];
  }

  /** Say a turn in other words: what came after it goes. */
  edit(turn, index, text) {
    const area = h("textarea", { rows: 2, value: turn.text, "aria-label": "Edited question" });
    const save = () => {
      if (!area.value.trim() || this.running) return;
      turn.text = area.value.trim();
      this.item.turns.length = index + 1;
      this.item.title = this.item.turns[0].text;
      this.answer();
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
      else if (event.key === "Escape") this.show();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const cancel = h("button", { type: "button", class: "quiet", text: "Cancel", on: { click: () => this.show() } });
    const go = h("button", { type: "button", class: "go", text: "Ask again", on: { click: save } });
    text.replaceWith(h("div", { class: "editor" }, area, h("div", { class: "bar" }, h("span", { class: "grow" }), cancel, go)));
    area.focus();
  }
}

/** Shows an answer as it grows, once per frame, and follows it as long as the reader does. */
class Painter {
  constructor(element, turn) {
    this.element = element;
    this.turn = turn;
    this.frame = 0;
  }

  add(piece) {
    this.turn.text += piece;
    this.frame ||= requestAnimationFrame(() => this.paint());
  }

  paint() {
    this.frame = 0;
    const scroller = $("talk");
    const isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
    this.element.replaceChildren(...markdown(this.turn.text));
    if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
  }

  stop() {
    cancelAnimationFrame(this.frame);
  }
}

function newItem() {
  return { id: newId(), kind: "ask", title: "", turns: [] };
}

/** What the history keeps of a conversation: an error is of the moment. */
function plain(item) {
  return { ...item, turns: item.turns.map(({ error, ...turn }) => turn) };
}

function messagesOf(turns, system) {
  const messages = turns.filter((turn) => turn.text || turn.images?.length).map(messageOf);
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

function messageOf({ role, text, images }) {
  if (!images?.length) return { role, content: text };
  const parts = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return { role, content: text ? [...parts, { type: "text", text }] : parts };
}

function noteOf({ usage, firstS, tokensPerS, reason }, body) {
  const parts = [];
  if (usage) parts.push(plural(usage.completion_tokens, "token"));
  if (tokensPerS) parts.push(`${rate(tokensPerS)} tokens/s`);
  if (firstS) parts.push(`first after ${seconds(firstS)}`);
  if (body.seed !== undefined) parts.push(`seed ${body.seed}`);
  if (reason === "length") parts.push("cut off by the limit");
  return parts.join(" · ");
}
