"""The negative control: a multimodal server as one writes it in an afternoon.

In the spirit of DeepSeek's `demo/fastapi_app.py`, with a stub in the place of the model: work in
`async def`, bodies read whole, any bytes decoded and any address fetched, parameters unchecked,
exceptions told to the client. It offers the paths that the attacks use, so that they can be seen
to fail here: a suite that passes everything is not one. Never expose it to a network.
"""

import base64
import io
import json
import os
import pickle
import resource
import socket
import sys
import time
import urllib.request
import uuid
from collections import Counter
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, StreamingResponse
from PIL import Image

TOKEN_S = 0.01
NUM_CODES = 16
IMAGE_TOKENS = 576

app = FastAPI()
app.add_middleware(
    CORSMiddleware, allow_origin_regex=".*", allow_credentials=True, allow_headers=["*"]
)
requests_seen = Counter()
running = 0
answers_by_prompt = {}  # a "prefix cache": everybody's, and it only grows


class Stub:
    """Takes as long as a small model and always says the same."""

    def load(self, directory):
        weights = Path(directory) / "pytorch_model.bin"
        if weights.exists():
            with weights.open("rb") as file:
                pickle.load(file)
        for code in Path(directory).glob("modeling_*.py"):  # trust_remote_code=True
            exec(code.read_text())

    def answer(self, prompt, num_tokens, temperature=0.0):
        answers_by_prompt[prompt] = prompt
        for _ in range(num_tokens):
            int(temperature)  # NaN reaches the sampler
            time.sleep(TOKEN_S)
            yield "word "

    def draw(self, prompt, guidance=5.0, size="16x16"):
        answers_by_prompt[prompt] = prompt
        width, height = (int(side) for side in size.split("x"))
        for _ in range(NUM_CODES):
            int(guidance)
            time.sleep(TOKEN_S)
        file = io.BytesIO()
        Image.new("RGB", (width, height), "red").save(file, "PNG")
        return file.getvalue()


model = Stub()


@app.middleware("http")
async def observe(request: Request, call_next):
    global running
    running += 1
    print(f"{request.method} {request.scope['path']} {dict(request.headers)}", flush=True)
    requests_seen[request.method, request.url.path] += 1
    response = await call_next(request)
    running -= 1
    response.headers["x-request-id"] = request.headers.get("x-request-id", str(uuid.uuid4()))
    return response


def load_image(url):
    if url.startswith("data:"):
        data = base64.b64decode(url.split(",", 1)[1])
    elif "://" in url:
        data = urllib.request.urlopen(url).read()
    else:
        data = Path(url).read_bytes()
    return open_image(data)


def open_image(data):
    return Image.open(io.BytesIO(data)).convert("RGB").resize((384, 384))


def prompt_of(body):
    prompt = ""
    for message in body["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "image_url":
                load_image(part["image_url"]["url"])
                prompt += "<image_placeholder>\n"
            else:
                prompt += part["text"]
    return prompt


@app.post("/v1/chat/completions")
async def chat(request: Request):
    try:
        body = await request.json()
        prompt = prompt_of(body)
        print("prompt:", prompt, flush=True)
        words = model.answer(prompt, body.get("max_tokens") or 16, body.get("temperature", 1.0))
        if body.get("stream"):
            return StreamingResponse(sse(words), media_type="text/event-stream")
        texts = ["".join(words)] * body.get("n", 1)
    except Exception as exc:
        raise HTTPException(500, detail=f"An error occurred: {exc}") from exc
    choices = [
        {"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": "length"}
        for i, t in enumerate(texts)
    ]
    num_tokens = len(prompt.split()) + IMAGE_TOKENS * prompt.count("<image_placeholder>")
    usage = {"prompt_tokens": num_tokens, "completion_tokens": 16, "total_tokens": num_tokens + 16}
    return {"id": "chatcmpl-1", "model": "stub", "choices": choices, "usage": usage}


async def sse(words):
    for word in words:
        yield (
            "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}) + "\n\n"
        )
    yield "data: [DONE]\n\n"


@app.post("/v1/images/generations")
async def generate(request: Request):
    try:
        body = await request.json()
        guidance, size = body.get("guidance_scale", 5.0), body.get("size", "16x16")
        files = [model.draw(body["prompt"], guidance, size) for _ in range(body.get("n", 1))]
    except Exception as exc:
        raise HTTPException(500, detail=f"Image generation failed: {exc}") from exc
    return {"created": 0, "data": [{"b64_json": base64.b64encode(f).decode()} for f in files]}


@app.post("/v1/images/edits")
async def edit(image: Annotated[UploadFile, File()], prompt: Annotated[str, Form()]):
    open_image(await image.read())
    return {"data": [{"b64_json": base64.b64encode(model.draw(prompt)).decode()}]}


@app.post("/v1/ask")
@app.post("/v1/caption")
@app.post("/understand_image_and_question/")
async def understand(
    image: Annotated[UploadFile | None, File()] = None,
    file: Annotated[UploadFile | None, File()] = None,
    question: Annotated[str, Form()] = "",
):
    try:
        open_image(await (image or file).read())
        answer = "".join(model.answer(f"<image_placeholder>\n{question}", 16))
    except Exception as exc:
        raise HTTPException(500, detail=f"{exc}") from exc
    return {"answer": answer, "caption": answer, "response": answer}


@app.get("/v1/models")
async def models():
    return {"object": "list", "data": [{"id": "tiny", "object": "model"}]}


@app.get("/readyz")
@app.get("/livez")
@app.get("/health")
async def health():
    return {"status": "ok"}


@app.get("/metrics")
async def metrics():
    lines = [f'http_requests_total{{method="{m}",handler="{p}"}} {n}' for (m, p), n in
             requests_seen.items()]  # fmt: skip
    lines += [f"janus:num_requests_running {max(0, running - 1)}", "janus:num_requests_waiting 0"]
    return PlainTextResponse("\n".join([*lines, "janus:kv_cache_usage_perc 0", ""]))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))  # spare the machine
    model.load(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"Listening on http://127.0.0.1:{listener.getsockname()[1]} as {os.getpid()}", flush=True)
    uvicorn.Server(uvicorn.Config(app, access_log=False)).run(sockets=[listener])
