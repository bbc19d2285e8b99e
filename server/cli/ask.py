"""`janus ask`: one answer, printed as it is written.

Owns nothing but the order of things. Invariant: stdout carries the answer and a final line break
only.
"""

from pathlib import Path

import typer

from janus_core.engine.events import Failed, TextDelta
from janus_core.errors import ImageInputError
from janus_core.image_processor import PreparedImage
from janus_core.pipeline import Pipeline, TextOptions
from janus_core.prompt import Message


def answer(
    pipeline: Pipeline,
    files: list[tuple[Path, bytes]],
    *,
    question: str,
    system: str | None,
    options: TextOptions,
) -> None:
    """Ask `question` about the images in `files` (name and contents). Raises JanusError."""
    images = [_prepared(pipeline, path, data) for path, data in files]
    messages: list[Message[PreparedImage]] = [Message("user", (*images, question))]
    if system is not None:
        messages.insert(0, Message("system", (system,)))
    requests = pipeline.text_requests(messages, options, request_id="ask")
    for event in pipeline.run(requests):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, TextDelta):
            typer.echo(event.text, nl=False)
    typer.echo()


def _prepared(pipeline: Pipeline, path: Path, data: bytes) -> PreparedImage:
    """The image of a file; an error names the file."""
    try:
        return pipeline.prepare_image(data)
    except ImageInputError as error:
        raise ImageInputError(f"{path}: {error.message}", code=error.code) from error
