// The Vercel AI SDK with @ai-sdk/openai-compatible: text, streams, objects, pictures.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage, generateObject, generateText, streamText } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "janus",
  baseURL: `${process.env.JANUS_TEST_URL}/v1`,
  apiKey: "none",
  supportsStructuredOutputs: true,
});
const model = provider("janus-mini");
const messages = [
  {
    role: "user",
    content: [
      { type: "image", image: readFileSync(process.env.JANUS_TEST_PICTURE) },
      { type: "text", text: "What color is the circle?" },
    ],
  },
];

test("text", async () => {
  const { text, finishReason, usage } = await generateText({ model, messages, maxRetries: 0 });
  assert.match(text, /red/);
  assert.equal(finishReason, "stop");
  assert.ok(usage.outputTokens > 0);
});

test("streamed text", async () => {
  let text = "";
  for await (const delta of streamText({ model, messages, maxRetries: 0 }).textStream) text += delta;
  assert.match(text, /red/);
});

test("objects", async () => {
  const schema = z.object({ color: z.enum(["red", "green", "blue"]), isRound: z.boolean() });
  const { object } = await generateObject({ model, messages, schema, maxRetries: 0 });
  schema.parse(object);
});

test("pictures", async () => {
  const { images } = await generateImage({
    model: provider.imageModel("janus-mini"),
    prompt: "a large red circle",
    n: 2,
    size: "512x512",
    maxRetries: 0,
    providerOptions: { janus: { seed: 7, guidance_scale: 4 } },
  });
  assert.equal(images.length, 2);
  images.forEach((image) => assert.equal(image.mediaType, "image/png"));
});
