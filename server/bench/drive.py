"""Sends the load and collects the records.

Owns the timing of requests: a Poisson process, or so many in flight at any time, or both (arrivals
that wait while too many are in flight; their waiting counts, because a client would have waited).
Invariant: warm-up requests are over before the first measured one begins, and appear nowhere.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from server.bench.client import Client
from server.bench.load import Job, LoadOptions, arrivals, jobs
from server.bench.measures import Record, record_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveOptions:
    """`rate_per_s` None sends a request as soon as one ends; `concurrency` None lets any number be
    in flight."""

    num_requests: int = 64
    rate_per_s: float | None = None
    concurrency: int | None = None
    num_warmups: int = 2


@dataclass(frozen=True, slots=True)
class Run:
    """The records in the order of arrival; `duration_s` is from the first arrival to the last
    end."""

    records: tuple[Record, ...]
    duration_s: float


async def drive(
    client: Client,
    load: LoadOptions,
    options: DriveOptions,
    *,
    on_done: Callable[[Record], None] | None = None,
) -> Run:
    """Warm up, then send `options.num_requests` requests; `on_done` is told each as it ends."""
    # Another seed, or the measured requests would find their prompts in the server's caches.
    warm = jobs(replace(load, seed=load.seed + 1_000_003))
    for job in itertools.islice(warm, options.num_warmups):
        await client.send(job.path, job.body)
    gate = asyncio.Semaphore(options.concurrency or options.num_requests)

    async def one(job: Job, arrived_s: float) -> Record:
        async with gate:
            exchange = await client.send(job.path, job.body)
        exchange.started_s = arrived_s if options.rate_per_s is not None else exchange.started_s
        record = record_of(job.kind, exchange)
        if on_done is not None:
            on_done(record)
        return record

    tasks = []
    # Made beforehand: drawing scenes must not delay what is measured.
    made = list(itertools.islice(jobs(load), options.num_requests))
    times: Iterator[float] = itertools.repeat(0.0)
    if options.rate_per_s is not None:
        times = arrivals(options.rate_per_s, seed=load.seed)
    start_s = time.perf_counter()
    for job, at_s in zip(made, times, strict=False):
        if (wait_s := start_s + at_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(one(job, time.perf_counter())))
    records = await asyncio.gather(*tasks)
    return Run(tuple(records), time.perf_counter() - start_s)
