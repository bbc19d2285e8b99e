"""The weight files of a checkpoint directory, read tensor by tensor.

Owns file formats: safetensors or `.bin` (`weights_only=True`: a pickle may hold nothing but
tensors), in one file or sharded with an index. Knows no layout. Invariant: whatever is wrong with a
file is a `CheckpointError` that names it.
"""

import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open

from janus_core.errors import CheckpointError

_SINGLE_AND_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""In order of preference."""

_NUM_PORTIONS = 16
"""How often a file is opened while it is read; bounds its mapped share of the memory."""


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The files that hold the weights. Raises `CheckpointError` if there are none, or not all."""
    for single, index in _SINGLE_AND_INDEX:
        if (directory / single).is_file():
            return (directory / single,)
        if (directory / index).is_file():
            return _indexed_files(directory / index)
    names = " or ".join(single for single, _ in _SINGLE_AND_INDEX)
    raise CheckpointError(f"{directory} has no weights: neither {names}, nor an index of shards.")


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors, without reading them."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as handle:
                names = handle.keys()
                return {name: tuple(handle.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
    return {name: tuple(tensor.shape) for name, tensor in _load_bin(file).items()}


def read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a file, one after the other; let go of each before taking the next.

    Files are mapped, and what was read of a mapping counts as memory until it is closed. So the
    file is opened anew for every portion of it.
    """
    for names in _portions(file):
        if file.suffix == ".safetensors":
            yield from _read_safetensors(file, names)
        else:
            tensors = _load_bin(file)
            yield from ((name, tensors[name]) for name in names)


def _read_safetensors(file: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as handle:
            for name in names:
                yield name, handle.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _portions(file: Path) -> list[list[str]]:
    """The names of the file's tensors, cut into about `_NUM_PORTIONS` portions of equal size."""
    sizes = {name: math.prod(shape) for name, shape in stored_shapes(file).items()}
    if file.suffix == ".bin" and not zipfile.is_zipfile(file):
        return [list(sizes)]  # read into memory as a whole: once is enough
    portion_size = sum(sizes.values()) / _NUM_PORTIONS
    portions: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if filled >= portion_size:
            portions.append([])
            filled = 0
        portions[-1].append(name)
        filled += size
    return portions


def _indexed_files(index: Path) -> tuple[Path, ...]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(index, error) from error
    # A shard is a file beside its index; anything else would read outside the checkpoint.
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index} names a shard outside its directory.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} is incomplete: {', '.join(missing[:5])} ({len(missing)} of "
            f"{len(names)} shards) missing. Download the checkpoint again."
        )
    return tuple(index.parent / name for name in names)


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    """Tensors backed by the file itself (mmap); files older than torch 1.6 are read into memory."""
    failures = (RuntimeError, ValueError, OSError, EOFError, UnpicklingError)
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except failures as error:
        raise _damaged(file, error) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{file} is not a table of named tensors.")
    return state


def _damaged(file: Path, error: Exception) -> CheckpointError:
    reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return CheckpointError(
        f"{file} cannot be read, it is damaged or incomplete ({reason}). Download it again."
    )
