"""`janus doctor`: what this machine is, whether a model fits, and what to do next.

Owns the report. Reads headers and sizes only: no weights are loaded and nothing is downloaded.
"""

import importlib.metadata
import math
import platform
from collections.abc import Iterator
from pathlib import Path

import typer

from janus_core.checkpoint.files import stored_shapes, weight_files
from janus_core.config import ModelConfig, read_config
from janus_core.device import (
    Placement,
    describe_kernels,
    fit,
    free_bytes,
    place,
    use_threads,
    weights_bytes,
    with_formats,
)
from janus_core.engine.settings import EngineSettings, bytes_per_position
from janus_core.errors import CheckpointError, JanusError
from janus_core.pipeline import EMBEDDED_CHECKPOINT
from janus_core.threads import usable_cores

PACKAGES = (
    "janus-serve",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "fastapi",
    "pillow",
)


def examine(
    model: str | None,
    *,
    device: str,
    dtype: str,
    weight_format: str,
    kv_format: str,
    native: bool,
    threads: int,
) -> bool:
    """Print the report; returns whether something stands in the way of serving `model`."""
    for name, version in _versions():
        _line(name, version)
    try:
        num_threads = use_threads(threads)
        placement = with_formats(
            place(device, dtype), weight_format=weight_format, kv_format=kv_format, native=native
        )
        _line("device", f"{placement.device}, {placement.hardware}, {placement.dtype_name}")
        _line("threads", f"{num_threads}, on {usable_cores()} cores this process may use")
        _line("kernels", describe_kernels())
        _line("formats", placement.formats_name)
        _line("free memory", _gib(free_bytes(placement.device)))
        directory = _local(model)
        config = read_config(directory)
        _line("model", str(directory))
        _fit(directory, config, placement)
    except JanusError as error:
        _line("problem", error.message)
        return True
    name = f" {model}" if model else ""
    _line("next", f"janus serve{name}")
    return False


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"


def _local(model: str | None) -> Path:
    """The directory of a model that is on this machine. Raises CheckpointError for any other."""
    if model is None:
        return EMBEDDED_CHECKPOINT
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json")
    except ValueError as error:
        raise CheckpointError(f"{model} is neither a directory nor a Hugging Face id.") from error
    if not isinstance(cached, str):
        raise CheckpointError(f"{model} is not on this machine. Next: janus pull {model}")
    return Path(cached).parent


def _fit(directory: Path, config: ModelConfig, placement: Placement) -> None:
    """Weights, then what is left for sequences. Raises CheckpointError if that is too little."""
    shapes = [item for file in weight_files(directory) for item in stored_shapes(file).items()]
    num_parameters = sum(math.prod(shape) for _, shape in shapes)
    read_bytes, kept_bytes = weights_bytes(shapes, placement)
    reading = "" if read_bytes == kept_bytes else f", {_gib(read_bytes)} while they are read"
    _line("weights", f"{num_parameters / 1e6:.1f} M parameters, {_gib(kept_bytes)}{reading}")
    if read_bytes > free_bytes(placement.device):
        raise CheckpointError(
            f"Not enough memory on {placement.device}: reading the weights takes "
            f"{_gib(read_bytes)}, but {_gib(free_bytes(placement.device))} are free."
        )
    settings = fit(EngineSettings(), config, placement, reserved_bytes=kept_bytes)
    positions = settings.pool_positions(config, bytes_per_value=placement.kv_dtype.itemsize)
    per_position = bytes_per_position(config.backbone, placement.kv_dtype.itemsize)
    conversations = min(settings.max_sequences, positions // config.backbone.max_positions)
    pictures = min(settings.max_sequences // 2, positions // (2 * config.vq.num_codes))
    _line("kv pool", f"{positions} positions, {_gib(positions * per_position)}")
    _line(
        "room for",
        f"{pictures} guided pictures at once, or {conversations} conversations of full length",
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _line(name: str, value: str) -> None:
    typer.echo(f"{name:<14}{value}")
