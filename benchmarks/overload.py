"""What a server does when more is asked of it than it can do.

Owns the load: chat and pictures at half to five times the measured capacity and back, arriving at
random whatever becomes of those before, and one tenant's flood of pictures beside another's
questions. The server is a process of its own, the clients are this one. Invariant: every figure is
taken by the clients' clock, from the first byte sent to the last one received.
"""

import argparse
import asyncio
import base64
import gc
import io
import json
import os
import random
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from benchmarks.machine import describe
from benchmarks.overload_report import CALM_S, MUCH_LONGER, markdown
from benchmarks.serving import serving

LOADS = (0.5, 1.0, 2.0, 5.0, 0.5)
IMAGE_FRACTION = 0.2
MAX_WAITING = 32
MAX_QUEUE_S = 1.0
"""Of a picture or an answer: what has queued up when the crowd leaves is all that keeps the server
from being as quick as before."""

ALLOWED_S = 10.0
"""The deadline every client sends, and what is late is no good answer."""

IN_FLIGHT = 24
"""Clients that keep the server busy while its capacity is measured."""

FLOOD = 100
NUM_QUESTIONS = 60
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request; `sent_s` on the monotonic clock. Status 0 is a connection that broke."""

    kind: str
    sent_s: float
    took_s: float
    status: int


class Client:
    """HTTP/1.1 with as little work as possible: on a small machine it takes what it measures."""

    def __init__(self, url: str, *, key: str = "") -> None:
        self._host, self._port = url.removeprefix("http://").split(":")
        self._key = key
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, kind: str, body: bytes) -> Outcome:
        path = "/v1/images/generations" if kind == "picture" else "/v1/chat/completions"
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-timeout-s: {ALLOWED_S:g}\r\n"
        )
        if self._key:
            head += f"authorization: Bearer {self._key}\r\n"
        sent_s = time.monotonic()
        try:
            status = await self._exchange(head.encode() + b"\r\n" + body)
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        return Outcome(kind, sent_s, time.monotonic() - sent_s, status)

    async def _exchange(self, data: bytes) -> int:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection(self._host, int(self._port))
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.I)
        assert length, head
        await reader.readexactly(int(length[1]))
        if b"connection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


def body_of(kind: str, rng: random.Random) -> bytes:
    """What one client asks: an answer of 32 tokens, about an image if a "question", or a picture.
    No two share more than the beginning of a prompt."""
    number = rng.randrange(10**6)
    if kind == "picture":
        return json.dumps({"prompt": f"a large red circle {number}", "seed": number}).encode()
    text = f"What is number {number} about?"
    content: object = text
    if kind == "question":
        image = Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, 99))
        file = io.BytesIO()
        image.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": text},
        ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 32}
    return json.dumps(body | {"ignore_eos": True, "seed": number}).encode()


def some_kind(rng: random.Random) -> str:
    return "picture" if rng.random() < IMAGE_FRACTION else "chat"


async def capacity(client: Client, *, seconds: float, rng: random.Random) -> float:
    """Good answers a second to clients that always have one request under way."""
    begin_s = time.monotonic()
    until_s = begin_s + seconds
    outcomes: list[Outcome] = []

    async def insist() -> None:
        while time.monotonic() < until_s:
            kind = some_kind(rng)
            outcomes.append(await client.post(kind, body_of(kind, rng)))

    await asyncio.gather(*[insist() for _ in range(IN_FLIGHT)])
    done = [o for o in outcomes if o.status == 200 and o.sent_s + o.took_s <= until_s]
    return len(done) / seconds


async def offer(
    client: Client, rates: Sequence[float], *, seconds: float, rng: random.Random
) -> tuple[list[float], list[Outcome]]:
    """Requests that arrive at random, at each of the rates for so long; when each phase began, and
    what became of them all."""
    tasks: list[asyncio.Task[Outcome]] = []
    begins_s = []
    next_s = time.monotonic()
    for rate in rates:
        begins_s.append(next_s)
        until_s = next_s + seconds
        while True:
            gap_s = rng.expovariate(rate)
            if next_s + gap_s > until_s:
                next_s = until_s
                break
            next_s += gap_s
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            kind = some_kind(rng)
            tasks.append(asyncio.create_task(client.post(kind, body_of(kind, rng))))
    return begins_s, list(await asyncio.gather(*tasks))


def phase_figures(
    outcomes: Sequence[Outcome], *, begin_s: float, seconds: float
) -> dict[str, float]:
    """What clients saw who sent within the phase; goodput counts what came within it."""
    sent = [o for o in outcomes if begin_s <= o.sent_s < begin_s + seconds]
    good = [o for o in outcomes if o.status == 200]
    came = [o for o in good if begin_s <= o.sent_s + o.took_s < begin_s + seconds]
    accepted_s = sorted(o.took_s for o in sent if o.status == 200)
    refused_s = sorted(o.took_s for o in sent if o.status == 429)
    return {
        "offered_per_s": len(sent) / seconds,
        "goodput_per_s": len(came) / seconds,
        "pictures_per_s": sum(o.kind == "picture" for o in came) / seconds,
        "num_refused": len(refused_s),
        "num_late": sum(o.status in (503, 504) for o in sent),
        "num_other": sum(o.status not in (200, 429, 503, 504) for o in sent),
        "answer_p50_s": quantile(accepted_s, 0.5),
        "answer_p95_s": quantile(accepted_s, 0.95),
        "refusal_p50_ms": 1000 * quantile(refused_s, 0.5),
        "refusal_p99_ms": 1000 * quantile(refused_s, 0.99),
    }


def recovery_s(
    outcomes: Sequence[Outcome], *, before: tuple[float, float], begin_s: float
) -> float:
    """When, after the crowd has left, the first `CALM_S` begin in which no client is refused or
    waits for much longer than any did in the phase `before` (begin and end) of the same load. Much
    is half as long again: of two phases of equal load, one has the longest wait. What comes later
    is that load's own: requests that arrive at random come in bursts, before the crowd as well."""
    usual = {
        kind: MUCH_LONGER
        * max(
            (o.took_s for o in outcomes if o.kind == kind and before[0] <= o.sent_s < before[1]),
            default=ALLOWED_S,
        )
        for kind in ("chat", "picture")
    }
    late_s = sorted(
        o.sent_s - begin_s
        for o in outcomes
        if o.sent_s >= begin_s and (o.status != 200 or o.took_s > usual[o.kind])
    )
    calm_since_s = 0.0
    for each_s in late_s:
        if each_s - calm_since_s >= CALM_S:
            break
        calm_since_s = each_s
    return calm_since_s


def quantile(ascending: Sequence[float], share: float) -> float:
    """NaN of nothing."""
    if not ascending:
        return float("nan")
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


async def overload(url: str, *, seconds: float, seed: int) -> dict[str, object]:
    rng = random.Random(seed)
    client = Client(url)
    await capacity(client, seconds=5.0, rng=rng)  # the warm-up
    at_most = await capacity(client, seconds=seconds, rng=rng)
    rates = [load * at_most for load in LOADS]
    begins_s, outcomes = await offer(client, rates, seconds=seconds, rng=rng)
    phases = [phase_figures(outcomes, begin_s=begin_s, seconds=seconds) for begin_s in begins_s]
    client.close()
    recovered_s = recovery_s(
        outcomes, before=(begins_s[0], begins_s[0] + seconds), begin_s=begins_s[-1]
    )
    return {
        "capacity_per_s": at_most,
        "loads": LOADS,
        "phases": phases,
        "goodput_ratio": phases[3]["goodput_per_s"] / phases[1]["goodput_per_s"],
        "recovery_s": recovered_s,
    }


async def noisy_tenant(url: str, keys: tuple[str, str], *, seed: int) -> dict[str, object]:
    """The quiet tenant's questions and a picture, alone and beside `FLOOD` pictures of another."""
    rng = random.Random(seed)
    noisy, quiet = (Client(url, key=key) for key in keys)
    await quiet.post("picture", body_of("picture", rng))
    figures: dict[str, object] = {}
    stop = asyncio.Event()

    async def insist() -> None:
        while not stop.is_set():
            outcome = await noisy.post("picture", body_of("picture", rng))
            if outcome.status != 200:
                await asyncio.sleep(0.2)

    flood: list[asyncio.Task[None]] = []
    for name in ("alone", "beside"):
        if name == "beside":
            flood = [asyncio.create_task(insist()) for _ in range(FLOOD)]
            await asyncio.sleep(3.0)
        took_s = []
        for _ in range(NUM_QUESTIONS):
            outcome = await quiet.post("question", body_of("question", rng))
            assert outcome.status == 200, outcome
            took_s.append(outcome.took_s)
        pictures = [await quiet.post("picture", body_of("picture", rng)) for _ in range(5)]
        assert all(outcome.status == 200 for outcome in pictures), pictures
        took_s.sort()
        figures[f"{name}_p50_s"] = quantile(took_s, 0.5)
        figures[f"{name}_p95_s"] = quantile(took_s, 0.95)
        figures[f"{name}_picture_s"] = median(outcome.took_s for outcome in pictures)
    stop.set()
    await asyncio.gather(*flood)
    for client in (noisy, quiet):
        client.close()
    alone, beside = figures["alone_p95_s"], figures["beside_p95_s"]
    assert isinstance(alone, float)
    assert isinstance(beside, float)
    return figures | {"p95_ratio": beside / alone}


def main() -> None:
    """Measure, and write a report beside the others."""
    parser = argparse.ArgumentParser(description="Overload, and a noisy tenant.")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a phase")
    parser.add_argument("--threads", default="1", help="compute threads of the server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="path of the report without its suffix")
    args = parser.parse_args()
    machine = describe()
    # A look at everything that was imported would hold up all clients at once.
    gc.freeze()
    shared = ("--threads", args.threads)
    bounds = ("--max-waiting", str(MAX_WAITING), "--max-queue-s", f"{MAX_QUEUE_S:g}")
    with serving(*shared, *bounds) as url:
        crowd = asyncio.run(overload(url, seconds=args.seconds, seed=args.seed))
    keys = ("sk-noisy-tenant-key", "sk-quiet-tenant-key")
    os.environ["JANUS_API_KEYS"] = f"noisy:{keys[0]},quiet:{keys[1]}"
    with serving(*shared) as url:
        tenants = asyncio.run(noisy_tenant(url, keys, seed=args.seed))
    report = {
        "command": shlex.join([Path(sys.executable).name, "-m", "benchmarks.overload"])
        + f" --seconds {args.seconds:g} --threads {args.threads} --seed {args.seed}",
        "machine": machine,
        "settings": {
            "seconds": args.seconds,
            "max_waiting": MAX_WAITING,
            "max_queue_s": MAX_QUEUE_S,
            "deadline_s": ALLOWED_S,
            "picture_fraction": IMAGE_FRACTION,
            "flags": list(shared),
        },
        "overload": crowd,
        "noisy_tenant": tenants,
    }
    out = args.out or RESULTS / f"{str(machine['date'])[:10]}-overload"
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    text = markdown(report)
    out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
