"""How much pictures slow answers, and answers pictures: the curve that defines a server of both.

    python -m benchmarks.mixed --out benchmarks/results/DATE-mixed-mini.json

Owns two sweeps over HTTP: `NUM_CHATS` chats in flight at any time beside a growing number of
pictures in flight, and `NUM_PICTURES` pictures in flight beside chats that arrive at a growing
rate. The server is a process of its own. Invariants: every point lasts as long, its beginning is
not counted, and what is in flight at its end is let go to its end before the next one begins.
"""

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.serving import serving
from benchmarks.shapes import DEFAULT_FOLDER, checkpoint
from server.bench.client import Client
from server.bench.load import Job, LoadOptions, arrivals, jobs
from server.bench.measures import Record, record_of, spread

NUM_CHATS = NUM_PICTURES = 4
PICTURES_IN_FLIGHT = (0, 1, 2, 4, 8)
CHATS_PER_S = (0.0, 2.0, 5.0, 10.0, 20.0)
ANSWER_TOKENS = 64
UNCOUNTED_SHARE = 0.2
"""Of a point, at its beginning: until as much is in flight as belongs there."""


class Point:
    """One load for `seconds`. `records` are of what ended while it was counted."""

    def __init__(self, client: Client, *, seconds: float) -> None:
        self._client = client
        now_s = time.perf_counter()
        self._counts_from_s = now_s + UNCOUNTED_SHARE * seconds
        self._end_s = now_s + seconds
        self.counted_s = (1.0 - UNCOUNTED_SHARE) * seconds
        self.records: list[Record] = []

    async def one(self, job: Job) -> None:
        """Send a request and keep its record. A failure makes the measurement worthless."""
        exchange = await self._client.send(job.path, job.body)
        record = record_of(job.kind, exchange)
        if record.error:
            raise RuntimeError(f"a request failed: {record.error}")
        if self._counts_from_s <= exchange.ended_s < self._end_s:
            self.records.append(record)

    async def in_flight(self, work: Iterator[Job], count: int) -> None:
        """`count` requests at any time."""

        async def again_and_again() -> None:
            while time.perf_counter() < self._end_s:
                await self.one(next(work))

        await asyncio.gather(*(again_and_again() for _ in range(count)))

    async def arriving(self, work: Iterator[Job], rate_per_s: float) -> None:
        """Requests as a Poisson process."""
        sent = []
        start_s = time.perf_counter()
        for at_s in arrivals(rate_per_s, seed=0) if rate_per_s else ():
            if start_s + at_s >= self._end_s:
                break
            await asyncio.sleep(start_s + at_s - time.perf_counter())
            sent.append(asyncio.create_task(self.one(next(work))))
        await asyncio.gather(*sent)

    def figures(self) -> dict[str, Any]:
        """What came of it."""
        texts = [record for record in self.records if record.kind != "image"]
        num_images = sum(record.num_images for record in self.records)
        return {
            "answers": len(texts),
            "images_per_s": num_images / self.counted_s,
            "answers_per_s": len(texts) / self.counted_s,
            "ttft_s": spread([r.first_s for r in texts if r.first_s is not None]),
            "tpot_s": spread([r.tpot_s for r in texts if r.tpot_s is not None]),
        }


async def sweep(url: str, *, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Both curves, a point after the other."""
    client = Client(url)
    chats = jobs(LoadOptions(workload="chat", max_tokens=ANSWER_TOKENS, ignore_eos=True))
    drawn = jobs(LoadOptions(workload="images", seed=1, previews=0))

    async def point(**load: float) -> dict[str, Any]:
        at = Point(client, seconds=seconds)
        if "pictures" in load:
            parts: Sequence[Coroutine[Any, Any, None]] = (
                at.in_flight(chats, NUM_CHATS),
                at.in_flight(drawn, int(load["pictures"])),
            )
        else:
            parts = (
                at.arriving(chats, load["chats_per_s"]),
                at.in_flight(drawn, NUM_PICTURES),
            )
        await asyncio.gather(*parts)
        return load | at.figures()

    for job in itertools.chain(itertools.islice(chats, 4), itertools.islice(drawn, 4)):
        await client.send(job.path, job.body)  # the warm-up
    return {
        "beside_pictures": [await point(pictures=count) for count in PICTURES_IN_FLIGHT],
        "beside_chats": [await point(chats_per_s=rate) for rate in CHATS_PER_S],
    }


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="mini", help="as for benchmarks.compare")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="for what is kept")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a point")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="file for the report, JSON")
    arguments = parser.parse_args()
    about = machine.describe()
    directory = checkpoint(arguments.shape, arguments.folder)
    with serving(str(directory), "--threads", str(arguments.threads)) as url:
        curves = asyncio.run(sweep(url, seconds=arguments.seconds))
    report = {
        "shape": arguments.shape,
        "machine": about,
        "threads": arguments.threads,
        "seconds": arguments.seconds,
        "num_chats": NUM_CHATS,
        "num_pictures": NUM_PICTURES,
        "answer_tokens": ANSWER_TOKENS,
        **curves,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
