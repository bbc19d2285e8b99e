"""What all training stages share: arguments, logging, learning rate, averaged weights, pixels.

Owns no stage. Invariant: a stage is a function of its arguments and its seed.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


def arguments(
    description: str | None, texts: dict[str, str] | None = None, **defaults: int
) -> argparse.Namespace:
    """Return the command line: `--work`, `--seed`, and an option per text and per number; starts
    logging."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--work", type=Path, default=Path("build/janus-mini"), help="folder of checkpoints and logs"
    )
    parser.add_argument("--seed", type=int, default=1)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    for name, text in (texts or {}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=text)
    parsed = parser.parse_args()
    parsed.work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S"
    )
    torch.set_num_threads(1)
    torch.manual_seed(parsed.seed)
    return parsed


def learning_rate(
    step: int, num_steps: int, *, peak: float, warmup: int = 100, last: float = 0.01
) -> float:
    """Return a linear warm-up followed by a cosine down to `last * peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    return peak * cosine(progress, last=last)


def cosine(progress: float, *, last: float = 0.01) -> float:
    """Return the share of the peak rate at a progress of 0..1: from 1 down to `last`."""
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group, times the group's own `scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


class Average:
    """A moving average of a module's parameters, with a short memory in the beginning."""

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the parameters of `model`."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        params = dict(model.named_parameters())
        names = list(self.weights)
        torch._foreach_lerp_(
            [self.weights[n] for n in names], [params[n].detach() for n in names], 1 - decay
        )

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average and the parameters of `model`; a second call undoes the first."""
        for name, p in model.named_parameters():
            kept = p.detach().clone()
            p.copy_(self.weights[name])
            self.weights[name] = kept


def pixels(images: list[Image.Image]) -> Tensor:
    """Return pictures of one size as float32 `[B, 3, height, width]` in -1..1."""
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def picture(values: Tensor) -> Image.Image:
    """Return `[3, height, width]` in -1..1 as a picture, clipped and truncated as Janus does."""
    array = ((values.float() + 1) * 127.5).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def contact_sheet(images: list[Image.Image], *, columns: int = 8, zoom: int = 2) -> Image.Image:
    """Return the pictures in rows on white, enlarged without smoothing."""
    side = images[0].width
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + 4)), "white")
    for i, image in enumerate(images):
        sheet.paste(image, ((i % columns) * (side + 4) + 2, (i // columns) * (side + 4) + 2))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


class Optimizers:
    """Muon for the matrices inside the network's layers, AdamW for everything else.

    Both follow one learning rate; parameters whose name holds a key of `scales` take a share of it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner: tuple[str, ...],
        scales: dict[str, float] | None = None,
        weight_decay: float = 0.05,
    ) -> None:
        matrices: dict[float, list[nn.Parameter]] = {}
        others: dict[float, list[nn.Parameter]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                kind = matrices if p.ndim == 2 and any(part in name for part in inner) else others
                share = min((v for key, v in (scales or {}).items() if key in name), default=1.0)
                kind.setdefault(share, []).append(p)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                [{"params": ps, "scale": share} for share, ps in matrices.items()],
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [{"params": ps, "scale": share} for share, ps in others.items()],
                betas=(0.9, 0.98),
                weight_decay=weight_decay,
            ),
        ]

    def step(self, rate: float) -> None:
        """Apply and clear the gradients."""
        for part in self.parts:
            set_learning_rate(part, rate)
            part.step()
            part.zero_grad(set_to_none=True)
