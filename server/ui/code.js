// A request as something to paste: curl, Python, JavaScript. The body is the one the page sends, to
// the letter; without "stream" it is that of the same request, answered at once.

import { apiKey } from "./api.js";
import { copyText, h, iconButton, openDialog } from "./dom.js";

const STREAM_ONLY = ["stream", "stream_options", "partial_images", "progress"];
const MAX_SHOWN_CHARS = 160;

/** Fields of the body that the `openai` package knows by name; the rest goes into `extra_body`. */
const OPENAI_FIELDS = new Set([
  "model", "messages", "prompt", "n", "temperature", "top_p", "max_tokens", "seed", "stream", "stream_options", "partial_images",
]);

export function openCode(path, body) {
  const isDrawing = path !== "/v1/chat/completions";
  let language = "curl";
  let isStream = !isDrawing;
  const code = h("code");
  const pre = h("pre", { tabindex: "0", "aria-label": "Code" }, code);
  const current = () => snippet(language, path, body, { isStream });
  const show = () => {
    code.textContent = shortened(current());
    for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.value === language));
  };
  const tabs = ["curl", "Python", "JavaScript"].map((name) =>
    h("button", { type: "button", class: "segment", value: name, text: name, on: { click: () => { language = name; show(); } } }),
  );
  const stream = h("input", { type: "checkbox", id: "code-stream", checked: isStream, on: { change: () => { isStream = stream.checked; show(); } } });
  const copy = iconButton("copy", "Copy code", () => copyText(current(), "Code copied."));
  openDialog(
    "Show code",
    { className: "wide" },
    h("div", { class: "bar" }, h("div", { class: "segments", role: "group", "aria-label": "Language" }, ...tabs), h("span", { class: "grow" }), h("label", { class: "check", for: "code-stream" }, stream, "Stream"), copy),
    pre,
    h("p", { class: "note", text: noteOf(path) }),
  );
  show();
}

function noteOf(path) {
  const files = path === "/v1/chat/completions" ? "" : " Pictures are written beside it, named after their seeds.";
  const key = apiKey() ? " The key comes from the variable JANUS_API_KEY, so that it is not in the code." : "";
  return `This is the request of this page; long images are shortened here and whole when copied.${files}${key}`;
}

/** Images in base64 are for machines. */
function shortened(text) {
  return text.replace(/base64,[A-Za-z0-9+/=]{160,}/g, (match) => `${match.slice(0, MAX_SHOWN_CHARS / 4)}…${Math.round(match.length / 1024)} kB…`);
}

export function snippet(language, path, body, { isStream }) {
  const sent = isStream ? body : Object.fromEntries(Object.entries(body).filter(([name]) => !STREAM_ONLY.includes(name)));
  const write = { curl, Python: python, JavaScript: javascript }[language];
  return write(path, sent, { isStream, isDrawing: path !== "/v1/chat/completions" });
}

// --- curl: the body through stdin, because an argument may be too short for an image -------------

function curl(path, body, { isStream, isDrawing }) {
  const url = location.origin + path;
  const key = apiKey() ? ` \\\n  -H "Authorization: Bearer $JANUS_API_KEY"` : "";
  const options = isStream ? "-sSN" : "-sS";
  const save = isDrawing && !isStream ? ` | python3 -c '${SAVE}'` : "";
  return `curl ${options} ${url} -H 'Content-Type: application/json'${key} \\\n  -d @- <<'JSON'${save}\n${JSON.stringify(body, null, 2)}\nJSON\n`;
}

const SAVE = `
import base64, json, sys
for picture in json.load(sys.stdin)["data"]:
    name = "picture-%d.png" % picture["seed"]
    open(name, "wb").write(base64.b64decode(picture["b64_json"]))
    print(name)
`;

// --- Python: the openai package, which most already have -----------------------------------------

function python(path, body, options) {
  const key = apiKey() ? `os.environ["JANUS_API_KEY"]` : `"none"`;
  const imports = [options.isDrawing ? "import base64\n" : "", apiKey() ? "import os\n" : ""].sort().join("");
  const head = `${imports}${imports ? "\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url="${location.origin}/v1", api_key=${key})\n`;
  if (path === "/v1/images/edits") return head + pythonEdit(body, options);
  const method = options.isDrawing ? "images.generate" : "chat.completions.create";
  return head + `reply = client.${method}(\n${keywords(body)})\n` + pythonEnd(options);
}

function pythonEdit({ images, ...body }, options) {
  const data = images[0].image_url.slice(images[0].image_url.indexOf(",") + 1);
  return `source = base64.b64decode(\n    "${data}"\n)  # base64,\nreply = client.images.edit(\n    image=("source.png", source),\n${keywords(body)})\n`.replace("\n)  # base64,", "\n)") + pythonEnd(options);
}

function keywords(body) {
  const known = Object.entries(body).filter(([name]) => OPENAI_FIELDS.has(name) && !(name === "seed" && "prompt" in body) && !isForeign(name, body));
  const extra = Object.entries(body).filter(([name]) => !known.some(([other]) => other === name));
  const lines = known.map(([name, value]) => `    ${name}=${literal(value, 4)},\n`);
  if (extra.length) lines.push(`    extra_body=${literal(Object.fromEntries(extra), 4)},\n`);
  return lines.join("");
}

/** Sampling fields are OpenAI's for answers only. */
const isForeign = (name, body) => "prompt" in body && ["temperature", "top_p"].includes(name);

function pythonEnd({ isStream, isDrawing }) {
  if (!isDrawing && isStream) {
    return `for chunk in reply:\n    if chunk.choices:\n        print(chunk.choices[0].delta.content or "", end="", flush=True)\nprint()\n`;
  }
  if (!isDrawing) return `print(reply.choices[0].message.content)\n`;
  const write = (indent, picture) =>
    `${indent}with open(f"picture-{${picture}.seed}.png", "wb") as file:\n${indent}    file.write(base64.b64decode(${picture}.b64_json))\n${indent}print(file.name)\n`;
  if (!isStream) return `for picture in reply.data:\n${write("    ", "picture")}`;
  return `for event in reply:\n    if event.type.endswith(".completed"):\n${write("        ", "event")}`;
}

/** A JSON value as Python, indented like black would. */
function literal(value, indent) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = " ".repeat(indent + 4);
  const outer = " ".repeat(indent);
  const entries = Array.isArray(value)
    ? value.map((each) => `${inner}${literal(each, indent + 4)},\n`)
    : Object.entries(value).map(([name, each]) => `${inner}${JSON.stringify(name)}: ${literal(each, indent + 4)},\n`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return entries.length ? `${open}\n${entries.join("")}${outer}${close}` : open + close;
}

// --- JavaScript: fetch, in a module, in Node or in a browser -------------------------------------

function javascript(path, body, options) {
  const key = apiKey() ? ", Authorization: `Bearer ${process.env.JANUS_API_KEY}`" : "";
  const files = options.isDrawing ? `import { writeFile } from "node:fs/promises";\n\n` : "";
  const head = `${files}const response = await fetch("${location.origin}${path}", {
  method: "POST",
  headers: { "Content-Type": "application/json"${key} },
  body: JSON.stringify(${indented(JSON.stringify(body, null, 2))}),
});
if (!response.ok) throw new Error(await response.text());
`;
  return head + (options.isStream ? scriptStream(options) : scriptEnd(options));
}

const indented = (text) => text.replaceAll("\n", "\n  ");

const WRITE = (indent, picture) =>
  `${indent}const name = \`picture-\${${picture}.seed}.png\`;\n${indent}await writeFile(name, Buffer.from(${picture}.b64_json, "base64"));\n${indent}console.log(name);\n`;

function scriptEnd({ isDrawing }) {
  if (!isDrawing) return `const reply = await response.json();\nconsole.log(reply.choices[0].message.content);\n`;
  return `const { data } = await response.json();\nfor (const picture of data) {\n${WRITE("  ", "picture")}}\n`;
}

function scriptStream({ isDrawing }) {
  const take = isDrawing
    ? `      const event = JSON.parse(line.slice(6));\n      if (!event.type?.endsWith(".completed")) continue;\n${WRITE("      ", "event")}`
    : `      if (line === "data: [DONE]") continue;\n      const [choice] = JSON.parse(line.slice(6)).choices;\n      process.stdout.write(choice?.delta.content ?? "");\n`;
  return `let buffer = "";
for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
  const lines = (buffer + piece).split("\\n");
  buffer = lines.pop();
  for (const line of lines) {
    if (!line.startsWith("data: ")) continue;
${take}  }
}
`.replaceAll("\n      ", "\n    ");
}
