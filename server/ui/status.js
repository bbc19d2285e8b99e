// The chip that says what runs here and how busy it is, and the model's card for everyone else.

import { get, ApiError } from "./api.js";
import { $, h, openDialog, plural, seconds } from "./dom.js";

const BUSY_MS = 1500;
const IDLE_MS = 5000;
// Without a key the answer is no until somebody enters one, which asks again at once.
const LOCKED_MS = 30_000;

/** What the server says about its model; null until it has answered. */
export const server = { card: null, version: null, load: null, state: "connecting" };

const listeners = new Set();

/** Call `listener` with the model's card, now or as soon as it is known, and whenever it changes. */
export function onCard(listener) {
  listeners.add(listener);
  if (server.card) listener(server.card);
}

let timer = 0;
let working = 0;

/** This page has one piece of work more (1) or less (-1) at the server. */
export function countWork(change) {
  working += change;
  refresh();
  // Sent is not yet begun: look again when it will be.
  if (change > 0) setTimeout(refresh, 400);
}

/** Ask again, and go on asking: often while there is work, seldom while nobody looks. */
export async function refresh() {
  clearTimeout(timer);
  if (!document.hidden) await ask();
  clearTimeout(timer);
  timer = setTimeout(refresh, server.state === "locked" ? LOCKED_MS : working || server.load?.server_load ? BUSY_MS : IDLE_MS);
}

async function ask() {
  try {
    if (!server.card) await meet();
    server.load = await get("/load");
    server.state = server.load.status !== "ok" ? "closed" : server.load.server_load ? "busy" : "ready";
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    server.state = error.status === 401 || error.status === 403 ? "locked" : "away";
    // It may come back as another one.
    server.card = server.load = null;
  }
  show();
}

async function meet() {
  const [models, version] = await Promise.all([get("/v1/models"), get("/version")]);
  [server.card] = models.data;
  server.version = version;
  for (const listener of listeners) listener(server.card);
}

function show() {
  const chip = $("status");
  chip.dataset.state = server.state;
  const words = text();
  if ($("status-text").textContent !== words) $("status-text").textContent = words;
}

function text() {
  if (server.state === "locked") return "API key needed";
  if (server.state === "away") return "not reachable";
  if (server.state === "closed") return server.load?.status === "draining" ? "shutting down" : "not working";
  if (!server.card || !server.load) return "connecting …";
  const name = server.card.id.split("/").pop();
  return `${name} · ${server.version.device} · ${queue()}`;
}

function queue() {
  const { num_requests_running: running, num_requests_waiting: waiting } = server.load;
  if (!running && !waiting) return "idle";
  return waiting ? `${running} running, ${waiting} waiting` : `${running} running`;
}

/** Everything the chip has no room for. */
export function openStatus() {
  const rows = [];
  const row = (name, value) => value !== null && value !== undefined && rows.push(h("dt", { text: name }), h("dd", { text: String(value) }));
  row("State", server.state === "ready" || server.state === "busy" ? queue() : text());
  if (server.card) {
    row("Model", server.card.id);
    row("Pictures", `${server.card.picture.size} pixels, ${server.card.picture.num_codes} codes`);
    row("Context", plural(server.card.max_model_len, "token"));
  }
  if (server.version) {
    const { device, dtype, number_formats: formats, attention_backend: attention, threads, version } = server.version;
    row("Device", `${device}, ${dtype}`);
    row("Number formats", formats);
    row("Attention", attention);
    row("Threads", threads);
    row("Version", version);
  }
  if (server.load?.image_eta_s) row("A picture asked for now", `about ${seconds(server.load.image_eta_s)}`);
  openDialog("What runs here", { className: "small" }, h("dl", { class: "facts" }, ...rows));
}
