"""From the files of a checkpoint to a network that runs.

Owns the strictness: every parameter is assigned exactly once, every stored tensor is used or
dropped on purpose, every number is finite. Knows names only through `layouts`, bytes only through
`files`. Invariant: besides the network itself, about one stored tensor is in memory at a time.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from janus_core.checkpoint.files import read_tensors, stored_shapes, weight_files
from janus_core.checkpoint.layouts import Translation, translate
from janus_core.config import Layout, read_config, read_layout
from janus_core.errors import CheckpointError
from janus_core.models.janus import JanusModel
from janus_core.ops.formats import PLAIN, Formats

_LOG = logging.getLogger(__name__)
_HEAD = "lm_head.weight"


def load_model(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    formats: Formats = PLAIN,
) -> JanusModel:
    """The network of a checkpoint directory in either layout; `formats` is what linear layers are
    converted to once they were read as `dtype`.

    Raises `CheckpointError` before any large allocation if names or shapes do not fit
    `config.json`, and while loading if a file is damaged or a number is not finite in `dtype`.
    """
    model = read_weights(directory, device=device, dtype=dtype)
    model.finish_loading(formats)
    return model


def read_weights(directory: Path, *, device: torch.device, dtype: torch.dtype) -> JanusModel:
    """The network before `JanusModel.finish_loading`: the stored tensors as they are."""
    started = time.monotonic()
    config = read_config(directory)
    layout = read_layout(directory)
    files = weight_files(directory)
    model = JanusModel.skeleton(config, device=device, dtype=dtype)
    translations = match_tensors(
        layout,
        _shapes_of(files),
        {name: tuple(tensor.shape) for name, tensor in model.destinations()},
        tied_head=config.backbone.tied_head,
    )
    model.to_empty(device=device)
    _fill(model, files, translations)
    _LOG.info(
        "loaded %s (%s layout, %d files) to %s as %s in %.1f s",
        directory, layout, len(files), device, dtype, time.monotonic() - started,
    )  # fmt: skip
    return model


def match_tensors(
    layout: Layout,
    stored: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    tied_head: bool = False,
) -> dict[str, Translation]:
    """Translate every stored name, or raise a `CheckpointError` that names all that does not fit.

    `stored` and `wanted` map names to shapes, in the layout's names and in the network's. With
    `tied_head`, a missing `lm_head` is not an error.
    """
    mismatch = _Mismatch()
    translations: dict[str, Translation] = {}
    sources: dict[str, str] = {}
    for name, shape in stored.items():
        translation = translate(layout, name)
        if translation is None or any(target not in wanted for target in translation.targets):
            mismatch.surplus.append(name)
            continue
        translations[name] = translation
        shapes = translation.shapes(shape)
        expected = [wanted[target] for target in translation.targets]
        if shapes != expected:
            mismatch.misshapen.append(f"{name} is {list(shape)}, for {list(expected[0])}")
        for target in translation.targets:
            if target in sources:
                mismatch.doubled.append(f"{name} and {sources[target]}")
            sources[target] = name
    optional = {_HEAD} if tied_head else set()
    mismatch.missing += [name for name in wanted if name not in sources and name not in optional]
    mismatch.raise_if_any()
    return translations


@dataclass(slots=True)
class _Mismatch:
    """What does not fit, by kind."""

    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)

    def raise_if_any(self) -> None:
        kinds = {
            "missing": self.missing,
            "not expected": self.surplus,
            "of the wrong shape": self.misshapen,
            "stored twice": self.doubled,
        }
        parts = [f"{len(found)} {kind} ({_some(found)})" for kind, found in kinds.items() if found]
        if parts:
            raise CheckpointError(
                f"The weights do not fit config.json; tensors: {'; '.join(parts)}."
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _shapes_of(files: tuple[Path, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, shape in stored_shapes(file).items():
            if name in shapes:
                raise CheckpointError(f"{name} is stored twice, the second time in {file}.")
            shapes[name] = shape
    return shapes


@torch.inference_mode()
def _fill(
    model: JanusModel, files: tuple[Path, ...], translations: Mapping[str, Translation]
) -> None:
    destinations = dict(model.destinations())
    filled: set[str] = set()
    broken: list[str] = []
    for file in files:
        for name, tensor in read_tensors(file):
            targets = translations[name].targets
            if not targets:
                continue
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"{name} in {file} holds {tensor.dtype}, which are no weights."
                )
            source = tensor.squeeze(0) if translations[name].squeeze else tensor
            for target, part in zip(targets, source.chunk(len(targets)), strict=True):
                destination = destinations[target].copy_(part)
                if not _is_finite(destination):
                    broken.append(name)
            filled.update(targets)
    if broken:
        raise CheckpointError(
            f"The weights are not usable as {model.dtype}: {len(broken)} tensors hold NaN or "
            f"infinity ({_some(broken)})."
        )
    if _HEAD not in filled:
        words = destinations["model.language_model.embed_tokens.weight"]
        destinations[_HEAD].copy_(words)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or infinite.

    By minimum and maximum, which pass NaN on: 30 times as fast on a CPU as `isfinite`.
    """
    extremes = torch.stack(torch.aminmax(tensor))
    return bool(torch.isfinite(extremes).all())  # sync: at start only
