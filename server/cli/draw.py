"""`janus draw`: pictures from a prompt, with a progress bar, into files.

Owns file names. Invariant: a PNG says how it was made, in the way of one that the server sends, so
that it can be drawn again.
"""

from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from janus_core.engine.events import Failed, Finished, ImageProgress
from janus_core.errors import ParameterError
from janus_core.images import OutputFormat
from janus_core.pipeline import ImageOptions, Pipeline
from server.cli.terminal import status_console
from server.pictures import PictureFormat, describe

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
                height, width = event.pixels.shape[:2]
                style = PictureFormat(width, height, _FORMATS[path.suffix.lower()])
                metadata = describe(
                    request,
                    prompt=prompt,
                    negative_prompt=options.negative_prompt,
                    model_name=pipeline.name,
                    style=style,
                    num_codes=pipeline.config.vq.num_codes,
                )
                path.write_bytes(style.file(event.pixels, metadata=metadata))
    for request, path in by_id.values():
        typer.echo(f"{path}  seed {request.sampling.seed}")


def _paths(output: Path, n: int) -> list[Path]:
    """`out.png`, or `out-1.png`, `out-2.png`, ... for several pictures."""
    if n == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, n + 1)]
