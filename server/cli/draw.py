"""`janus draw`: pictures from a prompt, with a progress bar, into files.

Owns file names and the metadata of a picture. Invariant: a picture says how it was made (PNG text
chunks: prompt, negative_prompt, seed, guidance_scale, temperature, model), so that it can be drawn
again.
"""

from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from janus_core.engine.events import Failed, Finished, ImageProgress
from janus_core.engine.request import ImageRequest
from janus_core.errors import ParameterError
from janus_core.images import OutputFormat, encode_image
from janus_core.pipeline import ImageOptions, Pipeline
from server.cli.terminal import status_console

_FORMATS: dict[str, OutputFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}


def check_output(output: Path) -> None:
    """Refuse a file that could not be written in the end. Raises ParameterError."""
    if output.suffix.lower() not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise ParameterError(f"{output} must end in one of {known}.", param="output")
    if not output.parent.is_dir():
        raise ParameterError(f"There is no directory {output.parent}.", param="output")


def draw_pictures(pipeline: Pipeline, prompt: str, *, options: ImageOptions, output: Path) -> None:
    """Draw `options.n` pictures and name their files on stdout. Raises JanusError and OSError."""
    requests = pipeline.image_requests(prompt, options, request_id="draw")
    paths = _paths(output, len(requests))
    by_id = {request.id: (request, path) for request, path in zip(requests, paths, strict=True)}
    total = len(requests) * pipeline.config.vq.num_codes
    columns = (TextColumn("Drawing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    done: dict[str, int] = {}
    with Progress(*columns, console=status_console()) as bar:
        task = bar.add_task("codes", total=total)
        for event in pipeline.run(requests):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, ImageProgress):
                done[event.request_id] = event.num_codes
                bar.update(task, completed=sum(done.values()))
            if isinstance(event, Finished):
                assert event.pixels is not None, "nobody cancels: a finished picture has pixels"
                request, path = by_id[event.request_id]
                metadata = _metadata(pipeline, prompt, options, request)
                format = _FORMATS[path.suffix.lower()]
                path.write_bytes(encode_image(event.pixels, format, metadata=metadata))
    for request, path in by_id.values():
        typer.echo(f"{path}  seed {request.sampling.seed}")


def _paths(output: Path, n: int) -> list[Path]:
    """`out.png`, or `out-1.png`, `out-2.png`, ... for several pictures."""
    if n == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, n + 1)]


def _metadata(
    pipeline: Pipeline, prompt: str, options: ImageOptions, request: ImageRequest
) -> dict[str, str]:
    negative = {"negative_prompt": options.negative_prompt} if options.negative_prompt else {}
    return {
        "prompt": prompt,
        **negative,
        "seed": str(request.sampling.seed),
        "guidance_scale": str(request.guidance),
        "temperature": str(request.sampling.temperature),
        "model": pipeline.name,
    }
