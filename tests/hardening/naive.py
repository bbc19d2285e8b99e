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
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, StreamingResponse
from PIL import Image

TOKEN_S = 0.005
NUM_CODES = 16
IMAGE_TOKENS = 576

app = FastAPI()
app.add_middleware(
    CORSMiddleware, allow_origin_regex=".*", allow_credentials=True, allow_headers=["*"]
)
requests_seen = Counter()
running = 0
answers_by_prompt = {}  # a "prefix cache": everybody's, and it only grows


WORDS = ("a", "big", "blue", "circle", "is", "it", "of", "on", "red", "small", "star", "the")


def injected():
    """The rules a test has armed, which `faults/sitecustomize.py` reads here as in the server."""
    hooks = sys.modules.get("sitecustomize")
    return hooks.Faults(Path(os.environ["FAULTS_FILE"])) if "FAULTS_FILE" in os.environ else None


class Stub:
    """Takes as long as a small model, and says and draws what its prompt and its seed make of its
    only "context": everybody's, so that streams that take turns speak with each other's words."""

    def __init__(self):
        self.context = 0
        self.faults = injected()

    def load(self, directory):
        weights = Path(directory) / "pytorch_model.bin"
        if weights.exists():
            with weights.open("rb") as file:
                pickle.load(file)
        for code in Path(directory).glob("modeling_*.py"):  # trust_remote_code=True
            exec(code.read_text())

    def answer(self, prompt, num_tokens, temperature=0.0, seed=0):
        answers_by_prompt[prompt] = prompt
        self.context = zlib.crc32(f"{prompt} {seed}".encode(errors="replace"))
        id = uuid.uuid4()
        for number in range(num_tokens):
            int(temperature)  # NaN reaches the sampler
            self.step(id, seed, number, has_image="<image_placeholder>" in prompt)
            yield WORDS[self.context % len(WORDS)] + " "

    def draw(self, prompt, guidance=5.0, size="16x16", seed=0):
        answers_by_prompt[prompt] = prompt
        width, height = (int(side) for side in size.split("x"))
        self.context = zlib.crc32(f"{prompt} {seed}".encode(errors="replace"))
        id = uuid.uuid4()
        for number in range(NUM_CODES):
            int(guidance)
            self.step(id, seed, number)
        if self.faults and self.faults.num_renders_to_fail:
            self.faults.num_renders_to_fail -= 1
            raise RuntimeError("an injected fault of the picture's decoder")
        file = io.BytesIO()
        color = tuple(self.context.to_bytes(4, "big")[:3])
        Image.new("RGB", (width, height), color).save(file, "PNG")
        return file.getvalue()

    def step(self, id, seed, num_output, has_image=False):
        time.sleep(TOKEN_S)
        self.context = zlib.crc32(b"%d" % self.context)
        if not self.faults:
            return
        sampling = SimpleNamespace(seed=seed)
        request = SimpleNamespace(sampling=sampling)
        state = SimpleNamespace(id=id, request=request, num_output=num_output)
        self.faults.before_plan()
        self.faults.before_pass([state])
        if self.faults.spoilt:
            self.context = 0  # the argument of the maximum of NaNs
        if self.faults.encoding_fails and has_image:
            raise RuntimeError("an injected fault of the tower")
        if self.faults.num_allocations_to_fail:
            self.faults.num_allocations_to_fail -= 1
            raise MemoryError("no slot")


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
                image = load_image(part["image_url"]["url"])
                prompt += f"<image_placeholder>{zlib.crc32(image.tobytes())}\n"
            else:
                prompt += part["text"]
    return prompt


@app.post("/v1/chat/completions")
async def chat(request: Request):
    try:
        body = await request.json()
        prompt = prompt_of(body)
        print("prompt:", prompt, flush=True)
        num_tokens, temperature = body.get("max_tokens") or 16, body.get("temperature", 1.0)
        words = model.answer(prompt, num_tokens, temperature, body.get("seed"))
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
        prompt, seed = body["prompt"], body.get("seed")
        files = [model.draw(prompt, guidance, size, seed) for _ in range(body.get("n", 1))]
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
