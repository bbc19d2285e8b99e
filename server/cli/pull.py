"""`janus pull`: a model into the cache of huggingface_hub, checked before it is needed.

Owns nothing: the cache, its place and the credentials are huggingface_hub's (HF_HOME, HF_TOKEN,
...).
"""

from pathlib import Path

import typer

from janus_core.checkpoint import resolve_checkpoint
from janus_core.config import read_config


def pull_model(model: str, *, revision: str | None) -> None:
    """Download `model`, check that it is a Janus, say where it is and how to go on.

    Raises CheckpointError.
    """
    directory = resolve_checkpoint(model, revision=revision)
    read_config(directory)
    typer.echo(f"{model}: {_size_bytes(directory) / 1e9:.2f} GB in {directory}")
    if not Path(model).is_dir():
        typer.echo(f"Next: janus doctor {model}, then janus serve {model}", err=True)


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
