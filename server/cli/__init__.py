"""The `janus` command: serve, ask, draw, pull, doctor, bench.

Owns arguments, exit codes and what a person reads; the work is the pipeline's and the server's.
Invariants: `janus --help` loads nothing heavy, so every command imports what it needs when it runs;
an error is one line on stderr, with exit code 2 if the user can mend it and 1 if it is a fault.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from janus_core.errors import CheckpointError, JanusError, RequestError
from janus_core.threads import parse_threads
from server.heap import loading

EXIT_FAULT = 1
EXIT_USER = 2

app = typer.Typer(
    name="janus",
    help="Ask about images and draw them with DeepSeek Janus and Janus-Pro.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="JANUS_MODEL",
        help="Checkpoint: a directory or a Hugging Face id. Default: the embedded one.",
    ),
]
Device = Annotated[str, typer.Option(envvar="JANUS_DEVICE", help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[
    str, typer.Option(envvar="JANUS_DTYPE", help="auto, float32, bfloat16 or float16.")
]
WeightFormat = Annotated[
    str,
    typer.Option(
        envvar="JANUS_WEIGHT_FORMAT",
        help="auto; on a CPU fp32, fp16 or int8; on CUDA int8, fp8 or int4.",
    ),
]
KvFormat = Annotated[
    str,
    typer.Option(envvar="JANUS_KV_FORMAT", help="auto; on a CPU fp32 or fp16; on CUDA fp8."),
]
Native = Annotated[
    bool, typer.Option(envvar="JANUS_NATIVE", help="Use the C++ kernels where they are.")
]
Threads = Annotated[
    str,
    typer.Option(
        envvar="JANUS_THREADS", help="Threads that compute on a CPU; auto is one per core."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same result. Default: a random one.")]


@app.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    }
)
def serve(context: typer.Context) -> None:
    """Serve a model over HTTP, as OpenAI's API. `janus serve --help` lists every setting."""
    from server.cli.serve import serve_with

    raise typer.Exit(serve_with(context.args))


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="Image file: PNG, JPEG, WebP, GIF or BMP.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    more: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A further image; repeatable.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt. Default: the model's own.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is always the likeliest word.")] = 0.0,
    seed: Seed = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    weight_format: WeightFormat = "auto",
    kv_format: KvFormat = "auto",
    native: Native = True,
    threads: Threads = "auto",
) -> None:
    """Ask a question about an image."""
    with loading():
        from janus_core.pipeline import TextOptions
        from server.cli.ask import answer
        from server.cli.terminal import load_pipeline, read_file

    options = TextOptions(max_tokens=max_tokens, temperature=temperature, seed=seed)
    # Read before the model is loaded: a misspelt name is noticed at once.
    files = [(path, read_file(path)) for path in (image, *(more or ()))]
    pipeline = load_pipeline(
        model,
        device=device,
        dtype=dtype,
        weight_format=weight_format,
        kv_format=kv_format,
        native=native,
        threads=parse_threads(threads),
    )
    answer(pipeline, files, question=question, system=system, options=options)


@app.command()
def draw(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .png, .jpg or .webp.")
    ] = Path("out.png"),
    count: Annotated[int, typer.Option("-n", min=1, max=64, help="How many pictures.")] = 1,
    guidance: Annotated[
        float | None,
        typer.Option(help="How strictly to follow the prompt; 1 is unguided."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Lower is calmer, 0 always the same; else as the model wants it."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest codes; 0 is all.")] = 0,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from this share of the likelihood; else as the model wants it."),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to draw away from.")] = None,
    seed: Seed = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    weight_format: WeightFormat = "auto",
    kv_format: KvFormat = "auto",
    native: Native = True,
    threads: Threads = "auto",
) -> None:
    """Draw a picture."""
    with loading():
        from janus_core.pipeline import ImageOptions
        from server.cli.draw import check_output, draw_pictures
        from server.cli.terminal import load_pipeline

    options = ImageOptions(
        n=count,
        seed=seed,
        guidance=guidance,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        negative_prompt=negative_prompt,
        progress=True,
    )
    check_output(output)
    pipeline = load_pipeline(
        model,
        device=device,
        dtype=dtype,
        weight_format=weight_format,
        kv_format=kv_format,
        native=native,
        threads=parse_threads(threads),
    )
    draw_pictures(pipeline, prompt, options=options, output=output)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="A Hugging Face id, deepseek-ai/Janus-Pro-1B say.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a model to the local cache."""
    from server.cli.pull import pull_model

    pull_model(model, revision=revision)


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Argument(envvar="JANUS_MODEL", help="Checkpoint. Default: the embedded.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    weight_format: WeightFormat = "auto",
    kv_format: KvFormat = "auto",
    native: Native = True,
    threads: Threads = "auto",
) -> None:
    """See what this machine has, what fits on it, and what to do next."""
    with loading():
        from server.cli.doctor import examine

    has_problem = examine(
        model,
        device=device,
        dtype=dtype,
        weight_format=weight_format,
        kv_format=kv_format,
        native=native,
        threads=parse_threads(threads),
    )
    raise typer.Exit(EXIT_USER if has_problem else 0)


@app.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    }
)
def bench(context: typer.Context) -> None:
    """See how fast this machine is, or with `bench serve` a server. `janus bench --help`."""
    from server.cli.bench import bench_with

    raise typer.Exit(bench_with(context.args))


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
    except (RequestError, CheckpointError) as error:
        _exit(error.message, EXIT_USER)
    except JanusError as error:
        _exit(error.message, EXIT_FAULT)
    except OSError as error:
        _exit(f"{error.filename or 'I/O'}: {error.strerror or error}.", EXIT_USER)


def _exit(message: str, code: int) -> None:
    typer.echo(f"janus: {message}", err=True)
    sys.exit(code)
