// What was asked and drawn here: found again, gone on with, exported, forgotten. Only this browser
// has it; the server keeps nothing.

import { downloadText, h, iconButton, openDialog, plural, toast } from "./dom.js";
import { forget, forgetAll, items, keep } from "./store.js";

const FORMAT = "janus-serve-history";

/** The list of items; `onOpen` gets the one that was chosen. */
export async function openHistory(onOpen) {
  const list = h("ul", { class: "history" });
  const filter = h("input", { type: "search", placeholder: "Search", "aria-label": "Search the history" });
  const empty = h("p", { class: "note" });
  let all = [];

  const show = () => {
    const words = filter.value.trim().toLowerCase();
    const found = all.filter((item) => searchable(item).includes(words));
    list.replaceChildren(...found.map(entry));
    empty.textContent = all.length === 0 ? "Nothing yet. What you ask and draw here stays in this browser." : found.length === 0 ? "Nothing found." : "";
  };
  const reload = async () => {
    all = await items();
    show();
  };
  const entry = (item) => {
    const open = h(
      "button",
      { type: "button", class: "past", on: { click: () => { dialog.close(); onOpen(item); } } },
      thumbnail(item),
      h("span", { class: "past-words" }, h("strong", { text: item.title || "Untitled" }), h("small", { text: detail(item) })),
    );
    const remove = iconButton("trash", `Delete ${item.title}`, async () => {
      await forget(item.id);
      await reload();
    });
    return h("li", {}, open, remove);
  };
  const exportAll = () => {
    const day = new Date().toISOString().slice(0, 10);
    downloadText(`janus-history-${day}.json`, JSON.stringify({ format: FORMAT, version: 1, items: all }, null, 1));
  };
  const file = h("input", { type: "file", accept: "application/json,.json", hidden: true, "aria-label": "History file", on: { change: () => take(file.files[0]) } });
  const take = async (chosen) => {
    try {
      const { format, items: read } = JSON.parse(await chosen.text());
      if (format !== FORMAT || !read.every(isItem)) throw new Error();
      for (const item of read) await keep(item);
      toast(`${plural(read.length, "item")} imported.`);
    } catch {
      toast("This is not a history exported by this page.", { bad: true });
    }
    await reload();
  };
  let sure = false;
  const clear = h("button", { type: "button", class: "quiet", text: "Delete all", on: { click: async () => {
    if (!sure) {
      sure = true;
      clear.textContent = "Delete all, really?";
      return;
    }
    await forgetAll();
    sure = false;
    clear.textContent = "Delete all";
    await reload();
  } } });
  const dialog = openDialog(
    "History",
    { className: "drawer" },
    filter,
    empty,
    list,
    h(
      "footer",
      { class: "bar" },
      h("button", { type: "button", class: "quiet", text: "Export", on: { click: exportAll } }),
      h("button", { type: "button", class: "quiet", text: "Import", on: { click: () => file.click() } }),
      file,
      h("span", { class: "grow" }),
      clear,
    ),
  );
  filter.addEventListener("input", show);
  await reload();
}

function isItem(item) {
  const isAnswered = item.kind === "ask" && Array.isArray(item.turns);
  return typeof item.id === "string" && (isAnswered || (item.kind === "draw" && Array.isArray(item.pictures) && typeof item.body?.prompt === "string"));
}

function searchable(item) {
  return [item.title, ...(item.turns ?? []).map(({ text }) => text)].join("\n").toLowerCase();
}

function thumbnail(item) {
  const url = item.kind === "draw" ? item.pictures.find((picture) => picture.url)?.url : item.turns.flatMap((turn) => turn.images ?? [])[0]?.url;
  return url ? h("img", { src: url, alt: "" }) : h("span", { class: "blank", text: item.kind === "draw" ? "✎" : "?", "aria-hidden": "true" });
}

function detail(item) {
  const when = new Date(item.changed).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const what = item.kind === "draw" ? plural(item.pictures.filter(({ url }) => url).length, "picture") : plural(item.turns.filter(({ role }) => role === "user").length, "question");
  return `${what} · ${when}`;
}
