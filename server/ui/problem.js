// An error as a person reads it: what happened, what the server said, which request it was, and
// what to do next.

import { copyText, h } from "./dom.js";

/** A card for an ApiError; `onRetry` tries again, `onKey` opens the field for the key. */
export function problemCard(error, { onRetry, onKey }) {
  const actions = h("div", { class: "bar" });
  if (error.status === 401 || error.status === 403) {
    actions.append(h("button", { type: "button", class: "quiet", text: "Enter an API key", on: { click: onKey } }));
  }
  const retry = h("button", { type: "button", class: "quiet", text: "Try again", on: { click: onRetry } });
  if (!isFinal(error)) actions.append(retry);
  if (error.retryAfterS) countDown(retry, error.retryAfterS);
  const id = error.requestId
    ? h("p", { class: "note" }, "Request ", h("button", { type: "button", class: "mono", text: error.requestId, title: "Copy the request id", on: { click: () => copyText(error.requestId, "Request id copied.") } }))
    : null;
  return h("div", { class: "problem", role: "alert" }, h("strong", { text: `${error.title}.` }), h("p", { text: error.message }), id, actions);
}

/** The same request would be refused in the same way. */
const isFinal = (error) => error.status === 400 || error.status === 404 || error.status === 413;

function countDown(button, fromS) {
  let left = Math.ceil(fromS);
  const tick = () => {
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0 && (left === Math.ceil(fromS) || button.isConnected)) setTimeout(tick, 1000);
    left -= 1;
  };
  tick();
}
