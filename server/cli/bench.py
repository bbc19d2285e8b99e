"""`janus bench` and `janus bench serve`: arguments of the two measurements.

Owns flags and exit codes; the work is `server.bench`'s and is imported when it begins.
"""

from pathlib import Path
from typing import Annotated

import typer

from janus_core.threads import parse_threads
from server.heap import loading

EXIT_FAILURES = 1

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Also write JSON here.")]


def bench_with(arguments: list[str]) -> int:
    """Parse the arguments, measure, and return the exit code."""
    command = typer.main.get_command(app)
    result = command.main(arguments, prog_name="janus bench", standalone_mode=False)
    return result if isinstance(result, int) else 0


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds, after a warm-up.")] = 3,
    output: Output = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", envvar="JANUS_MODEL", help="Checkpoint, as for serve."),
    ] = None,
    device: Annotated[str, typer.Option(envvar="JANUS_DEVICE", help="As for serve.")] = "auto",
    dtype: Annotated[str, typer.Option(envvar="JANUS_DTYPE", help="As for serve.")] = "auto",
    weight_format: Annotated[
        str, typer.Option(envvar="JANUS_WEIGHT_FORMAT", help="As for serve.")
    ] = "auto",
    kv_format: Annotated[
        str, typer.Option(envvar="JANUS_KV_FORMAT", help="As for serve.")
    ] = "auto",
    native: Annotated[bool, typer.Option(envvar="JANUS_NATIVE", help="As for serve.")] = True,
    attention: Annotated[
        str, typer.Option(envvar="JANUS_ATTENTION", help="As for serve.")
    ] = "auto",
    cuda_graphs: Annotated[
        bool, typer.Option(envvar="JANUS_CUDA_GRAPHS", help="As for serve.")
    ] = True,
    deterministic: Annotated[
        bool, typer.Option(envvar="JANUS_DETERMINISTIC", help="As for serve.")
    ] = False,
    threads: Annotated[str, typer.Option(envvar="JANUS_THREADS", help="As for serve.")] = "auto",
) -> None:
    """Time pictures, chats and questions on this machine; `janus bench serve` times a server."""
    if context.invoked_subcommand is not None:
        return
    with loading():
        from janus_core.engine.settings import EngineSettings
        from server.bench.commands import bench_engine
        from server.cli.terminal import load_pipeline

    pipeline = load_pipeline(
        model,
        device=device,
        dtype=dtype,
        weight_format=weight_format,
        kv_format=kv_format,
        native=native,
        attention=attention,
        threads=parse_threads(threads),
        settings=EngineSettings(cuda_graphs=cuda_graphs, deterministic=deterministic),
    )
    bench_engine(pipeline, rounds=rounds, output=output)


@app.command()
def serve(
    url: Annotated[str, typer.Argument(help="Address of a running server.")] = (
        "http://127.0.0.1:8000"
    ),
    workload: Annotated[str, typer.Option(help="chat, vqa, images or mix.")] = "mix",
    requests: Annotated[int, typer.Option("-n", min=1, help="How many, without warm-ups.")] = 64,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Requests a second, arriving as a Poisson process."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Most in flight. Without a rate: 8, always that many.")
    ] = None,
    warmups: Annotated[int, typer.Option(min=0, help="Requests before, not measured.")] = 2,
    seed: Annotated[int, typer.Option(help="Same seed, same requests and arrivals.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    ignore_eos: Annotated[bool, typer.Option(help="Make every answer that long.")] = False,
    previews: Annotated[int, typer.Option(min=0, max=16, help="Of every picture.")] = 1,
    image_share: Annotated[
        float, typer.Option(min=0, max=1, help="Pictures in the mix; half the rest see an image.")
    ] = 0.5,
    scenes: Annotated[
        int, typer.Option(min=0, help="Different images asked about; 0: always a new one.")
    ] = 0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(help="A goal in ms, like ttft:500, tpot:50, image_e2el:9000; repeatable."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Name to ask for.")] = None,
    key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="API key.")] = None,
    output: Output = None,
) -> None:
    """Load a running server over HTTP, and say how it did. Fails if a request failed."""
    with loading():
        from server.bench.commands import bench_server
        from server.bench.drive import DriveOptions
        from server.bench.load import LoadOptions, workload_named

    load = LoadOptions(
        workload=workload_named(workload),
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
        previews=previews,
        image_share=image_share,
        num_scenes=scenes,
        model=model,
    )
    options = DriveOptions(
        num_requests=requests,
        rate_per_s=rate,
        concurrency=8 if rate is None and concurrency is None else concurrency,
        num_warmups=warmups,
    )
    goals = tuple(goodput or ())
    if not bench_server(url, key=key, load=load, options=options, goals=goals, output=output):
        raise typer.Exit(EXIT_FAILURES)
