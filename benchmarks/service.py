"""What the service costs: pictures a second over HTTP, and by the engine alone.

Owns both closed loops, which draw the same prompts with the same seeds, `IN_FLIGHT` at any time;
the server is a process of its own, as it is for its users. The engine alone runs in its thread, as
it does in the server: a loop that only calls `step` would spin while the last pictures are
rendered, and keep the renderer from the interpreter. Invariant: the two take turns, and the one
that is not measured is idle.
"""

import asyncio
import itertools
import queue
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.serving import serving
from janus_core.engine.events import Event, Failed, Finished
from janus_core.engine.request import Request
from janus_core.engine.service import EngineService
from janus_core.engine.settings import EngineSettings
from janus_core.pipeline import ImageOptions, Pipeline
from server.bench.client import Client
from server.bench.drive import DriveOptions, drive
from server.bench.load import Job, LoadOptions, jobs

IN_FLIGHT = 8


def overhead(directory: Path, *, rounds: int, num_images: int) -> dict[str, list[float]]:
    """Images per second of both by round, and their ratios, HTTP over engine."""
    pipeline = Pipeline.load(str(directory), settings=EngineSettings(threaded_rendering=True))
    events: queue.SimpleQueue[Sequence[Event]] = queue.SimpleQueue()
    engine = pipeline.new_service(events.put)
    engine.start()
    alone, served = [], []
    threads = str(torch.get_num_threads())
    with serving(str(directory), "--threads", threads) as url:
        for seed in range(rounds + 1):
            load = LoadOptions(workload="images", seed=seed, previews=0)
            work = list(itertools.islice(jobs(load), num_images))
            requests = [_request(pipeline, job, id=f"{seed}-{i}") for i, job in enumerate(work)]
            figures = [_over_http(url, load, num_images), _alone(engine, events, requests)]
            if seed:  # the first is the warm-up
                served.append(figures[0])
                alone.append(figures[1])
    engine.stop()
    ratios = [http / engine for http, engine in zip(served, alone, strict=True)]
    return {"http_images_per_s": served, "engine_images_per_s": alone, "ratios": ratios}


def _over_http(url: str, load: LoadOptions, num_images: int) -> float:
    options = DriveOptions(num_requests=num_images, concurrency=IN_FLIGHT, num_warmups=0)
    run = asyncio.run(drive(Client(url), load, options))
    failed = [record.error for record in run.records if record.error]
    if failed:
        raise RuntimeError(f"{len(failed)} pictures failed over HTTP: {failed[0]}")
    return num_images / run.duration_s


def _request(pipeline: Pipeline, job: Job, *, id: str) -> Request:
    options = ImageOptions(seed=job.body["seed"])
    (request,) = pipeline.image_requests(job.body["prompt"], options, request_id=id)
    return request


def _alone(
    engine: EngineService, events: "queue.SimpleQueue[Sequence[Event]]", requests: list[Request]
) -> float:
    """Images per second with `IN_FLIGHT` pictures at any time and nothing but the engine."""
    waiting = iter(requests)
    start_s = time.perf_counter()
    for request in itertools.islice(waiting, IN_FLIGHT):
        engine.submit(request)
    num_finished = 0
    while num_finished < len(requests):
        for event in events.get():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                num_finished += 1
                for request in itertools.islice(waiting, 1):
                    engine.submit(request)
    return len(requests) / (time.perf_counter() - start_s)
