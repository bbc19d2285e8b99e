"""What the commands share: loading a model with a sign of life, and looking after the screen.

Owns stderr's status lines; results go to stdout and belong to the commands. Invariant: nothing
animated is written to what is not a terminal.
"""

from pathlib import Path

from rich.console import Console

from janus_core.engine.settings import EngineSettings
from janus_core.errors import ParameterError
from janus_core.pipeline import Pipeline
from server.heap import loading


def load_pipeline(
    model: str | None,
    *,
    device: str,
    dtype: str,
    weight_format: str = "auto",
    kv_format: str = "auto",
    native: bool = True,
    attention: str = "auto",
    threads: int = 0,
    settings: EngineSettings | None = None,
) -> Pipeline:
    """Load a model for one command, with a spinner meanwhile."""
    console = status_console()
    with console.status(f"Loading {model or 'the embedded model'}..."), loading():
        return Pipeline.load(
            model,
            device=device,
            dtype=dtype,
            weight_format=weight_format,
            kv_format=kv_format,
            native=native,
            attention=attention,
            threads=threads,
            settings=settings,
        )


def status_console() -> Console:
    """Where progress is shown: stderr, so that results can be piped."""
    return Console(stderr=True)


def read_file(path: Path) -> bytes:
    """The bytes of a file the user named. Raises ParameterError that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error.strerror}.") from error
