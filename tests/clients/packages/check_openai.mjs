// openai for Node: chat, streams, pictures, responses, errors.

import assert from "node:assert/strict";
import { createReadStream, readFileSync } from "node:fs";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const MODEL = "janus-mini";
const client = new OpenAI({
  baseURL: `${process.env.JANUS_TEST_URL}/v1`,
  apiKey: "none",
  maxRetries: 0,
});
const picture = readFileSync(process.env.JANUS_TEST_PICTURE);
const url = `data:image/png;base64,${picture.toString("base64")}`;
const text = "What color is the circle?";
const messages = [
  { role: "user", content: [{ type: "image_url", image_url: { url } }, { type: "text", text }] },
];
const input = [
  {
    role: "user",
    content: [
      { type: "input_text", text },
      { type: "input_image", image_url: url, detail: "auto" },
    ],
  },
];
// Bounded: a model this small may never end a string.
const Answer = z.object({ color: z.enum(["red", "green", "blue"]), isRound: z.boolean() });

function isPng(b64) {
  assert.equal(Buffer.from(b64, "base64").toString("latin1", 1, 4), "PNG");
}

test("chat", async () => {
  const reply = await client.chat.completions.create({ model: MODEL, messages });
  assert.match(reply.choices[0].message.content, /red/);
  assert.match(reply._request_id, /^req_/);
});

test("streamed chat", async () => {
  const stream = await client.chat.completions.create({
    model: MODEL,
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  let answer = "";
  let usage = null;
  for await (const chunk of stream) {
    answer += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.match(answer, /red/);
  assert.ok(usage.completion_tokens > 0);
});

test("parse", async () => {
  const reply = await client.chat.completions.parse({
    model: MODEL,
    messages,
    response_format: zodResponseFormat(Answer, "answer"),
  });
  Answer.parse(reply.choices[0].message.parsed);
});

test("pictures", async () => {
  const reply = await client.images.generate({
    model: MODEL,
    prompt: "a large red circle",
    n: 2,
    size: "512x512",
    response_format: "b64_json",
  });
  assert.equal(reply.data.length, 2);
  reply.data.forEach((item) => isPng(item.b64_json));
});

test("partial pictures", async () => {
  const stream = await client.images.generate({
    model: MODEL,
    prompt: "a blue square",
    stream: true,
    partial_images: 2,
  });
  const kinds = [];
  for await (const event of stream) {
    kinds.push(event.type);
    isPng(event.b64_json);
  }
  assert.deepEqual(kinds, [
    "image_generation.partial_image",
    "image_generation.partial_image",
    "image_generation.completed",
  ]);
});

test("edits", async () => {
  const reply = await client.images.edit({
    model: MODEL,
    image: createReadStream(process.env.JANUS_TEST_PICTURE),
    prompt: "a large blue circle",
    response_format: "b64_json",
  });
  isPng(reply.data[0].b64_json);
});

test("responses", async () => {
  const reply = await client.responses.create({ model: MODEL, input });
  assert.match(reply.output_text, /red/);
});

test("streamed responses", async () => {
  const stream = await client.responses.create({ model: MODEL, input, stream: true });
  let answer = "";
  let last = null;
  for await (const event of stream) {
    if (event.type === "response.output_text.delta") answer += event.delta;
    last = event;
  }
  assert.equal(last.type, "response.completed");
  assert.match(answer, /red/);
});

test("parsed responses", async () => {
  const reply = await client.responses.parse({
    model: MODEL,
    input,
    text: { format: zodTextFormat(Answer, "answer") },
  });
  Answer.parse(reply.output_parsed);
});

test("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes(MODEL));
});

test("errors", async () => {
  await assert.rejects(client.chat.completions.create({ model: "gpt-5", messages }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    assert.match(error.requestID, /^req_/);
    return true;
  });
  await assert.rejects(
    client.chat.completions.create({ model: MODEL, messages, temperature: 9 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
  );
});
