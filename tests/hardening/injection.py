"""A server with faults at hand, the requests to meet them, and what clients make of the answers.

Owns the way from a rule to the file that the injected code reads (`faults/sitecustomize.py`), and
what an answer or a stream comes down to. Knows no row.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.hardening.target import GOOD_IMAGE, Target, png_url
from tests.serving import ROOT, wait_until

FOLDER = Path(__file__).parent / "faults"
CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
NOT_MET = "there was no"
MOST_IN_FLIGHT = 200
"""Threads that wait for answers at once."""


class Faults:
    """The rules in force in one server."""

    def __init__(self, path: Path) -> None:
        self._path, self._met = path, path.with_suffix(".met")
        self.env = {
            "FAULTS_FILE": str(path),
            "PYTHONPATH": os.pathsep.join(
                [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)]
            ),
        }

    def arm(self, *rules: str) -> None:
        """From the next step on these rules hold, and no others."""
        self._met.write_text("")
        new = self._path.with_suffix(".new")
        new.write_text("\n".join(rules))
        new.replace(self._path)

    def disarm(self) -> None:
        """No faults any more."""
        self.arm()

    def met(self) -> list[str]:
        """The kinds of those that happened since, one after the other. A test whose fault did not
        happen shows nothing."""
        return self._met.read_text().split() if self._met.exists() else []

    def wait_until_met(self, kind: str, timeout_s: float) -> None:
        """Until that fault has happened."""
        wait_until(lambda: kind in self.met(), timeout_s, message=f"{NOT_MET} {kind}")


@dataclass(frozen=True)
class Seen:
    """What a client got. `text` is what was said or drawn, `error` the error object's code if
    there was one, and `broke` whether the connection ended before the answer did."""

    status: int
    text: str
    error: str | None
    headers: httpx2.Headers
    broke: bool = False


def question(seed: int, *, words: str = "hello", stream: bool = False, **fields: object) -> tuple:
    """A question whose answer is long enough to meet a fault."""
    content = [{"type": "text", "text": words}]
    return CHAT, {
        "messages": [{"role": "user", "content": content}],
        "seed": seed,
        "temperature": 1,
        "max_tokens": 24,
        "ignore_eos": True,
        "stream": stream,
        **fields,
    }


def image_question(seed: int, *, side_px: int = 32, **fields: object) -> tuple:
    """A question about a picture, another one for every side."""
    url = png_url(GOOD_IMAGE.resize((side_px, 30)))
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is it?"},
    ]
    path, body = question(seed, **fields)
    return path, body | {"messages": [{"role": "user", "content": content}]}


def drawing(seed: int, *, stream: bool = False, **fields: object) -> tuple:
    """A picture."""
    body = {"prompt": "a red circle", "seed": seed, "stream": stream, "partial_images": 2}
    return IMAGES, (body if stream else body | {"partial_images": 0}) | fields


def ask(
    target: Target,
    request: tuple,
    begun: Callable[[], object] = lambda: None,
    **options: object,
) -> Seen:
    """Send one request and read its answer to the end, however it ends. `begun` is called at the
    first event of a stream; the client gets the options."""
    path, body = request
    status, headers, pieces = 0, httpx2.Headers(), []
    try:
        with (
            target.client(**options) as client,
            client.stream("POST", path, json=body) as reply,
        ):
            status, headers = reply.status_code, reply.headers
            if not reply.headers.get("content-type", "").startswith("text/event-stream"):
                return _whole(reply)
            for line in reply.iter_lines():
                if line.startswith("data: "):
                    pieces.append(line.removeprefix("data: "))
                    begun()
    except httpx2.HTTPError:
        return Seen(status, "", None, headers, broke=True)
    return _streamed(status, headers, pieces)


def ask_all(target: Target, requests: Iterable[tuple]) -> list[Seen]:
    """All at once."""
    requests = list(requests)
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: ask(target, request), requests))


class Asked:
    """Requests in flight: `started` once every stream among them has begun."""

    def __init__(self, target: Target, requests: Iterable[tuple]) -> None:
        self._target = target
        self._pool = ThreadPoolExecutor(MOST_IN_FLIGHT)
        self._begun: list[threading.Event] = []
        self._streams: list[bool] = []
        self._answers: list[Future[Seen]] = []
        self.add(requests)

    def add(self, requests: Iterable[tuple]) -> None:
        """Ask these, too."""
        for request in requests:
            begun = threading.Event()
            self._begun.append(begun)
            self._streams.append(request[1]["stream"])
            self._answers.append(self._pool.submit(ask, self._target, request, begun.set))
        assert len(self._answers) <= MOST_IN_FLIGHT, "some would not be asked yet"

    def wait_until_begun(self, timeout_s: float) -> None:
        """Until every stream has had its first event."""
        for begun, is_stream in zip(self._begun, self._streams, strict=True):
            assert not is_stream or begun.wait(timeout_s), "a stream does not begin"

    def wait_until_accepted(self, timeout_s: float) -> None:
        """Until the engine has all of them, which must not end before."""
        wait_until(
            lambda: self._num_accepted() >= len(self._answers),
            timeout_s,
            message="the engine does not get all requests",
        )

    def _num_accepted(self) -> float:
        counted = ("janus:num_requests_running", "janus:num_requests_waiting")
        return sum(v for name, v in self._target.metrics().items() if name.startswith(counted))

    def answers(self) -> list[Seen]:
        """What they all got."""
        seen = [answer.result() for answer in self._answers]
        self._pool.shutdown()
        return seen


def _whole(reply: httpx2.Response) -> Seen:
    reply.read()
    try:
        body = reply.json()
    except ValueError:
        return Seen(reply.status_code, reply.text, "no JSON", reply.headers)
    if "error" in body:
        error = body["error"]["code"]
        return Seen(reply.status_code, "", error, reply.headers)
    if "choices" in body:
        said = "|".join(choice["message"]["content"] for choice in body["choices"])
    elif "data" not in body:
        return Seen(reply.status_code, "", "no error object", reply.headers)
    else:
        said = "|".join(picture["b64_json"] for picture in body["data"])
    return Seen(reply.status_code, said, None, reply.headers)


def _streamed(status: int, headers: httpx2.Headers, data: list[str]) -> Seen:
    """Exactly one end is allowed: `[DONE]`, a completed picture, or an error."""
    said, ends = [], []
    for piece in data:
        if piece == "[DONE]":
            ends.append(None)
            continue
        event = json.loads(piece)
        if "error" in event:
            ends.append(event["error"]["code"])
        elif event.get("type", "").endswith(".completed"):
            said.append(event["b64_json"])
            ends.append(None)
        elif "choices" in event:
            said += [choice["delta"].get("content") or "" for choice in event["choices"]]
    assert len(ends) <= 1, f"a stream has {len(ends)} ends"
    if not ends:
        return Seen(status, "".join(said), None, headers, broke=True)
    return Seen(status, "".join(said), ends[0], headers)
