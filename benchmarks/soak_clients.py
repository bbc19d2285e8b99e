"""The clients of a soak: six kinds of request in a fixed mix, and a ledger of all they saw.

Owns the requests and what they must be answered; knows neither Prometheus nor the process. The
ledger is kept from replies alone, in the words of the metrics, so that both can be compared number
by number. Invariant: every request is entered exactly once, and an answer that does not belong to
its kind is a surprise, which no soak may have.
"""

import base64
import io
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx2
from PIL import Image, ImageDraw

CHAT = "/v1/chat/completions"
ASK = "/v1/ask"
DRAW = "/v1/images/generations"
UNMATCHED = "unmatched"

MIX = {
    "question": 0.40,
    "upload": 0.20,
    "by_url": 0.10,
    "drawing": 0.10,
    "bad_input": 0.15,
    "disconnect": 0.05,
}
"""Shares of the kinds of request."""

MAX_TOKENS = 12
LEFT_TOKENS = 400
"""What a client asks for that will leave: it gets exactly so many if it leaves too late."""

NUM_PICTURES = 48
WORDS = ("what", "who", "where", "which colour", "how many", "is it red", "describe it", "and why")


@dataclass(slots=True)
class Ledger:
    """What the clients know. `http` counts (handler, status), with status 0 where a client left
    and cannot know; the others are sums in the words of the metrics."""

    num_requests: int = 0
    http: Counter[tuple[str, int]] = field(default_factory=Counter)
    success: Counter[tuple[str, str]] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=Counter)
    prompt_tokens: Counter[str] = field(default_factory=Counter)
    output_tokens: Counter[str] = field(default_factory=Counter)
    num_left: int = 0
    num_fetched: int = 0
    num_pictures: int = 0
    surprises: list[str] = field(default_factory=list)

    def enter(self, handler: str, status: int) -> None:
        """An answer is complete."""
        self.num_requests += 1
        self.http[handler, status] += 1

    def answered(self, task: str, reason: str, *, prompt: int, output: int, n: int = 1) -> None:
        """The engine did what was asked."""
        self.success[task, reason] += n
        self.prompt_tokens[task] += n * prompt
        self.output_tokens[task] += output

    def left(self, handler: str, *, prompt: int) -> None:
        """The client left in the midst of an answer to so many tokens."""
        self.num_requests += 1
        self.num_left += 1
        self.http[handler, 0] += 1
        self.prompt_tokens["left"] += prompt


@dataclass(frozen=True, slots=True)
class Bad:
    """A request that must be refused; `code` is None where the framework refuses it, uncounted."""

    method: str
    path: str
    status: int
    code: str | None
    handler: str
    body: bytes = b"{}"
    media_type: str = "application/json"


def _chat_body(**fields: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "x"}], **fields}).encode()


def _image_body(url: str) -> bytes:
    part = {"type": "image_url", "image_url": {"url": url}}
    return json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()


BAD = (
    Bad("POST", CHAT, 400, "invalid_json", CHAT, b"{"),
    Bad("POST", CHAT, 400, "missing_required_parameter", CHAT),
    Bad("POST", CHAT, 400, "invalid_value", CHAT, _chat_body(n=0)),
    Bad("POST", CHAT, 400, "invalid_json", CHAT, b'{"temperature": NaN}'),
    Bad("POST", CHAT, 404, "model_not_found", CHAT, _chat_body(model="another")),
    Bad("POST", CHAT, 400, "invalid_base64_image", CHAT, _image_body("data:image/png;base64,!")),
    Bad("POST", CHAT, 400, "invalid_image_url", CHAT, _image_body("file:///etc/passwd")),
    Bad("POST", CHAT, 415, None, CHAT, b"x", "text/plain"),
    Bad("GET", CHAT, 405, None, CHAT, b""),
    Bad("POST", DRAW, 400, "missing_required_parameter", DRAW),
    Bad("GET", "/nothing/here", 404, None, UNMATCHED, b""),
)


class Clients:
    """One user's behaviour, over and over, against `base_url`; `image_url` is where a picture can
    be fetched from."""

    def __init__(self, base_url: str, image_url: str, *, seed: int) -> None:
        self.ledger = Ledger()
        self._http = httpx2.AsyncClient(base_url=base_url, timeout=120)
        self._image_url = image_url
        self._chance = random.Random(seed)
        self._files = [_file(self._chance) for _ in range(NUM_PICTURES)]
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "question": self._question,
            "upload": self._upload,
            "by_url": self._by_url,
            "drawing": self._drawing,
            "bad_input": self._bad_input,
            "disconnect": self._disconnect,
        }
        assert self._kinds.keys() == MIX.keys()

    async def one(self, kind: str | None = None) -> None:
        """One request, of a kind by the mix; a surprise is noted, never raised."""
        (chosen,) = [kind] if kind else self._chance.choices(list(MIX), list(MIX.values()))
        try:
            await self._kinds[chosen]()
        except (httpx2.HTTPError, KeyError, ValueError, IndexError) as error:
            self.ledger.surprises.append(f"{chosen}: {type(error).__name__}: {error}")

    def reopen(self, base_url: str) -> None:
        """Go on after `close`."""
        self._http = httpx2.AsyncClient(base_url=base_url, timeout=120)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _question(self) -> None:
        name, data = self._chance.choice(self._files)
        url = f"data:image/{name};base64,{base64.b64encode(data).decode()}"
        await self._chat(url)

    async def _by_url(self) -> None:
        self.ledger.num_fetched += 1
        await self._chat(f"{self._image_url}/{self._chance.randrange(1000)}.png")

    async def _chat(self, url: str) -> None:
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": self._words()},
        ]
        body = self._sampled({"messages": [{"role": "user", "content": content}]})
        if self._chance.random() < 0.5:
            reply = await self._http.post(CHAT, json=body)
            if self._is_good(reply, CHAT):
                self._answered(reply.json()["choices"][0]["finish_reason"], reply.json()["usage"])
            return
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self._http.stream("POST", CHAT, json=body) as reply:
            lines = [line async for line in reply.aiter_lines() if line.startswith("data: ")]
        if self._is_good(reply, CHAT):
            assert lines[-1] == "data: [DONE]", "a stream without an end"
            chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
            self._answered(choices[-1]["finish_reason"], chunks[-1]["usage"])

    async def _upload(self) -> None:
        name, data = self._chance.choice(self._files)
        form = self._sampled({"question": self._words()})
        files = {"image": (f"picture.{name}", data, f"image/{name}")}
        fields = {key: str(value) for key, value in form.items()}
        reply = await self._http.post(ASK, data=fields, files=files)
        if self._is_good(reply, ASK):
            self._answered(reply.json()["finish_reason"], reply.json()["usage"])

    async def _drawing(self) -> None:
        n = self._chance.choice((1, 1, 2))
        shape = self._chance.choice(("b64_json", "url"))
        body = {"prompt": self._words(), "n": n, "response_format": shape}
        reply = await self._http.post(DRAW, json=body)
        if not self._is_good(reply, DRAW):
            return
        usage = reply.json()["usage"]
        self.ledger.num_pictures += n
        # Pictures of one prompt share it in the reply's sum, but the engine counts it for each.
        prompt, output = usage["input_tokens"], usage["output_tokens"]
        self.ledger.answered("image", "stop", prompt=prompt, output=output, n=n)

    async def _bad_input(self) -> None:
        bad = self._chance.choice(BAD)
        headers = {"content-type": bad.media_type} if bad.body else {}
        reply = await self._http.request(bad.method, bad.path, content=bad.body, headers=headers)
        self.ledger.enter(bad.handler, reply.status_code)
        error = reply.json()["error"]
        if reply.status_code != bad.status or (bad.code and error["code"] != bad.code):
            self.ledger.surprises.append(f"{bad}: {reply.status_code} {error}")
        elif bad.code:
            self.ledger.rejections[bad.code] += 1

    async def _disconnect(self) -> None:
        """Leave after the first piece of a long answer."""
        body = {
            "messages": [{"role": "user", "content": self._words()}],
            "max_tokens": LEFT_TOKENS,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        async with self._http.stream("POST", CHAT, json=body) as reply:
            if reply.status_code != 200:
                await reply.aread()
                self._is_good(reply, CHAT)
                return
            first = await anext(reply.aiter_lines())
        prompt = json.loads(first.removeprefix("data: "))["prompt_token_ids"]
        self.ledger.left(CHAT, prompt=len(prompt))

    def _is_good(self, reply: httpx2.Response, handler: str) -> bool:
        self.ledger.enter(handler, reply.status_code)
        if reply.status_code != 200:
            self.ledger.surprises.append(f"{handler}: {reply.status_code} {reply.text[:200]}")
        return reply.status_code == 200

    def _answered(self, reason: str, usage: dict[str, int]) -> None:
        prompt, output = usage["prompt_tokens"], usage["completion_tokens"]
        self.ledger.answered("chat", reason, prompt=prompt, output=output)

    def _sampled(self, body: dict[str, object]) -> dict[str, object]:
        temperature = self._chance.choice((0, 0.7, 1.0))
        return body | {"max_tokens": MAX_TOKENS, "temperature": temperature}

    def _words(self) -> str:
        return " ".join(self._chance.choices(WORDS, k=self._chance.randint(1, 4)))


def picture_bytes(seed: int, format: str = "PNG") -> bytes:
    """A small picture that differs from seed to seed."""
    chance = random.Random(seed)
    image = Image.new("RGB", (chance.randint(16, 96), chance.randint(16, 96)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = chance.randint(0, image.width), chance.randint(0, image.height)
        draw.rectangle((x, y, x + 20, y + 20), fill=chance.randrange(2**24))
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def _file(chance: random.Random) -> tuple[str, bytes]:
    name = chance.choice(("png", "jpeg", "webp"))
    return name, picture_bytes(chance.randrange(2**32), name.upper())
