"""How fast this installation is, and how fast a running server is: what `janus bench` does.

Owns the tables. Without a server, the pipeline runs what a user would wait for: one
picture, eight at once, a chat, a question about an image and a second one. The comparison with
other engines is in the source tree (docs/benchmarks.md); this needs nothing but the package.
"""

import asyncio
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from janus_core.engine.events import Failed, Finished
from janus_core.engine.request import Request
from janus_core.errors import JanusError
from janus_core.image_processor import PreparedImage
from janus_core.pipeline import ImageOptions, Pipeline, TextOptions
from janus_core.prompt import Message
from server.bench.client import Client
from server.bench.drive import DriveOptions, drive
from server.bench.load import LoadOptions
from server.bench.measures import Record, parse_goals, spread, summarise

NUM_TOGETHER = 8
ANSWER_TOKENS = 32

TEXT_ROWS = ("ttft_s", "tpot_s", "itl_s", "e2el_s")
IMAGE_ROWS = ("ttfp_s", "preview_gap_s", "image_latency_s")
COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")


def bench_engine(pipeline: Pipeline, *, rounds: int, output: Path | None) -> None:
    """Time the pipeline `rounds` times after a warm-up; print a table, write JSON to `output`."""
    _round(pipeline, number=0)
    measured = [_round(pipeline, number=number) for number in range(1, rounds + 1)]
    figures = {name: spread([each[name] for each in measured]) for name in measured[0]}
    about = {"model": pipeline.name, "device": pipeline.device, "dtype": pipeline.dtype}
    about["formats"] = pipeline.number_formats
    _write(output, {**about, "rounds": rounds, "figures": figures})
    typer.echo(
        f"{pipeline.name} on {pipeline.device}, {pipeline.number_formats}, {rounds} rounds\n"
    )
    typer.echo(f"{'seconds':<34}{'median':>10}{'longest':>10}")
    for name, values in figures.items():
        assert values is not None, "every round has every figure"
        typer.echo(f"{name:<34}{values['p50']:>10.3f}{values['max']:>10.3f}")


def bench_server(
    url: str,
    *,
    key: str | None,
    load: LoadOptions,
    options: DriveOptions,
    goals: Sequence[str],
    output: Path | None,
) -> bool:
    """Send the load to the server at `url`; print tables, write JSON to `output`. Returns whether
    every request was answered. Raises ParameterError for an address or a goal that is none, and
    JanusError if no server answers there."""
    limits = parse_goals(goals)
    client = Client(url, key=key)
    run = asyncio.run(_drive(client, load, options))
    figures = summarise(run.records, duration_s=run.duration_s, goals=limits)
    settings = {"url": url, "workload": load.workload, "seed": load.seed}
    settings |= {"rate_per_s": options.rate_per_s, "concurrency": options.concurrency}
    settings |= {"warmups": options.num_warmups, "goals_s": limits}
    _write(output, {"settings": settings, **figures})
    _print(figures)
    return not figures["failed"]


async def _drive(client: Client, load: LoadOptions, options: DriveOptions) -> Any:
    hello = await client.send("/version")
    if hello.error:
        raise JanusError(f"No server answers there: {hello.error}.")
    with typer.progressbar(length=options.num_requests, label="requests") as bar:

        def advance(record: Record) -> None:
            del record
            bar.update(1)

        return await drive(client, load, options, on_done=advance)


def _print(figures: dict[str, Any]) -> None:
    typer.echo(
        f"{figures['completed']} of {figures['sent']} requests in {figures['duration_s']:.2f} s, "
        f"{figures['concurrency']:.2f} in flight on average"
    )
    for error in figures["errors"]:
        typer.echo(f"failed: {error}")
    for name in ("request_throughput", "output_token_throughput", "images_per_s",
                 "image_token_throughput", "goodput", "slo_attainment"):  # fmt: skip
        if figures[name] is not None:
            typer.echo(f"{name:<26}{figures[name]:>12.3f}")
    rows = [name for name in (*TEXT_ROWS, *IMAGE_ROWS) if figures[name]]
    if rows:
        typer.echo(f"\n{'milliseconds':<18}" + "".join(f"{name:>10}" for name in COLUMNS))
    for name in rows:
        values = "".join(f"{figures[name][column] * 1e3:>10.1f}" for column in COLUMNS)
        typer.echo(f"{name.removesuffix('_s'):<18}{values}")


def _write(output: Path | None, report: dict[str, Any]) -> None:
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _round(pipeline: Pipeline, *, number: int) -> dict[str, float]:
    """Seconds of each thing once; `number` makes prompts and images new to every cache."""
    one = ImageOptions(seed=number)
    many = ImageOptions(seed=number, n=NUM_TOGETHER)
    short = TextOptions(seed=0, max_tokens=1, min_tokens=1)
    long = TextOptions(seed=0, max_tokens=ANSWER_TOKENS, min_tokens=ANSWER_TOKENS)
    prompt = f"{number} red circles on a white background"
    image = pipeline.prepare_image(_scene(number))
    first = [Message("user", (image, "What color is the circle?"))]
    second = [Message("user", (image, "How many shapes are there in this picture?"))]
    chat: list[Message[PreparedImage]] = [Message("user", (f"Name {number} colors.",))]
    figures = {
        "one picture": _run(pipeline, pipeline.image_requests(prompt, one, request_id="one")),
        f"{NUM_TOGETHER} pictures at once": _run(
            pipeline, pipeline.image_requests(f"{prompt}, again", many, request_id="many")
        ),
        "first word about an image": _run(
            pipeline, pipeline.text_requests(first, short, request_id="first")
        ),
        "first word of a second question": _run(
            pipeline, pipeline.text_requests(second, short, request_id="second")
        ),
    }
    first_s = _run(pipeline, pipeline.text_requests(chat, short, request_id="word"))
    answer_s = _run(pipeline, pipeline.text_requests(chat, long, request_id="answer"))
    figures["first word of a chat"] = first_s
    figures[f"answer of {ANSWER_TOKENS} words"] = answer_s
    return figures


def _run(pipeline: Pipeline, requests: Sequence[Request]) -> float:
    """Seconds until all have ended; raises what made one fail."""
    start_s = time.perf_counter()
    num_ended = 0
    for event in pipeline.run(requests):
        if isinstance(event, Failed):
            raise event.error
        num_ended += isinstance(event, Finished)
    assert num_ended == len(requests), "every request ends"
    return time.perf_counter() - start_s


def _scene(number: int) -> bytes:
    """A PNG no other number gives."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (number % 256, 90, number // 256 % 256)).save(buffer, "PNG")
    return buffer.getvalue()
