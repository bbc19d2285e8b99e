// A small part of Markdown as elements: paragraphs, headings, lists, code, emphasis, links. What
// it does not know stays the text it is, and no text ever becomes markup.

import { h } from "./dom.js";

const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\s][^*\n]*\*)|\[([^\]\n]+)\]\((https?:\/\/[^\s()]+)\)|(https?:\/\/[^\s<>()]+)/g;

/** The text as a list of elements. */
export function markdown(text) {
  const nodes = [];
  const lines = text.split("\n");
  let index = 0;
  while (index < lines.length) {
    const line = lines[index];
    if (line.startsWith("```")) {
      const code = [];
      for (index += 1; index < lines.length && !lines[index].startsWith("```"); index += 1) code.push(lines[index]);
      index += 1;
      nodes.push(h("pre", { tabindex: "0" }, h("code", { text: code.join("\n") })));
    } else if (/^#{1,6} /.test(line)) {
      nodes.push(h("p", { class: "heading" }, ...inline(line.replace(/^#+ /, ""))));
      index += 1;
    } else if (/^\s*([-*]|\d+[.)]) /.test(line)) {
      const isOrdered = /^\s*\d/.test(line);
      const items = [];
      for (; index < lines.length && /^\s*([-*]|\d+[.)]) /.test(lines[index]); index += 1) {
        items.push(h("li", {}, ...inline(lines[index].replace(/^\s*([-*]|\d+[.)]) /, ""))));
      }
      nodes.push(h(isOrdered ? "ol" : "ul", {}, ...items));
    } else if (line.trim() === "") {
      index += 1;
    } else {
      const paragraph = [];
      for (; index < lines.length && isProse(lines[index]); index += 1) paragraph.push(lines[index]);
      nodes.push(h("p", {}, ...inline(paragraph.join("\n"))));
    }
  }
  return nodes;
}

const isProse = (line) => line.trim() !== "" && !/^(```|#{1,6} |\s*([-*]|\d+[.)]) )/.test(line);

function inline(text) {
  const nodes = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(last, match.index));
    last = match.index + match[0].length;
    const [whole, code, strong, emphasis, label, href, bare] = match;
    if (code) nodes.push(h("code", { text: code.slice(1, -1) }));
    else if (strong) nodes.push(h("strong", { text: strong.slice(2, -2) }));
    else if (emphasis) nodes.push(h("em", { text: emphasis.slice(1, -1) }));
    else nodes.push(link(href ?? bare, label ?? whole));
  }
  nodes.push(text.slice(last));
  return nodes.filter((node) => node !== "");
}

function link(href, label) {
  return h("a", { href, text: label, target: "_blank", rel: "noopener noreferrer nofollow" });
}
