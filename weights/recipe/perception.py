"""What the understanding tower has to see: labels for every patch, and the loss of linear heads.

Owns the dense supervision that is thrown away after training. Knows no model. Invariant: labels
come from the scene and the frame of its photograph alone.

Shapes: B pictures, P patches, Q outputs of the heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from weights.recipe.geometry import IMAGE_PX, PATCH_PX
from weights.recipe.photographs import Photograph
from weights.recipe.world import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene

GRID = IMAGE_PX // PATCH_PX
# Class "none" comes last in each of the first three.
HEADS = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "size": len(SIZES) + 1,
    "background": 3,
    "count": 3,
}
NUM_OUTPUTS = sum(HEADS.values()) + 4


@dataclass(frozen=True)
class Labels:
    """Classes `[B, P]` by head, and the object's centre `[B, P, 4]` in picture sides.

    The centre is told twice: from the patch, and from the picture's top left corner. The second
    keeps the patch's own position readable in the features, without which nobody can say where.
    """

    classes: dict[str, Tensor]
    centre: Tensor


def label(scenes: list[Scene], photographs: list[Photograph]) -> Labels:
    """Return what the heads have to say about every patch."""
    none = {"shape": len(SHAPES), "color": len(COLORS), "size": len(SIZES)}
    classes = {name: torch.full((len(scenes), GRID * GRID), none.get(name, 0)) for name in HEADS}
    told = torch.zeros(len(scenes), GRID * GRID, 4)
    centre = (torch.arange(GRID) + 0.5) * PATCH_PX
    y_P, x_P = (v.flatten() for v in torch.meshgrid(centre, centre, indexing="ij"))
    for i, (scene, photo) in enumerate(zip(scenes, photographs, strict=True)):
        left, top, width, height = photo.frame
        classes["background"][i] = list(BACKGROUNDS).index(scene.background)
        classes["count"][i] = len(scene.objects) - 1
        for item in scene.objects:
            dx_P, dy_P = left + item.x * width - x_P, top + item.y * height - y_P
            reach = item.extent * min(width, height) / 2 + 1
            inside = torch.maximum(dx_P.abs(), dy_P.abs()) < max(reach, PATCH_PX / 2 + 0.1)
            classes["shape"][i, inside] = SHAPES.index(item.shape)
            classes["color"][i, inside] = list(COLORS).index(item.color)
            classes["size"][i, inside] = SIZES.index(item.size)
            centre_P4 = torch.stack((dx_P, dy_P, dx_P + x_P, dy_P + y_P), -1)
            told[i, inside] = centre_P4[inside] / IMAGE_PX
    return Labels(classes, told)


def loss_of(out_BPQ: Tensor, labels: Labels) -> tuple[Tensor, dict[str, float]]:
    """Return the summed loss and the share of right classes by head (of patches with an object,
    where it matters)."""
    total = torch.zeros(())
    right: dict[str, float] = {}
    parts = out_BPQ.float().split([*HEADS.values(), 4], -1)
    inside = labels.classes["shape"] < len(SHAPES)
    weight = torch.where(inside, 1.0, 0.25)
    for (name, _), part in zip(HEADS.items(), parts, strict=False):
        target = labels.classes[name]
        each = F.cross_entropy(part.flatten(0, 1), target.flatten(), reduction="none").view_as(
            target
        )
        where = torch.ones_like(weight) if name in ("background", "count") else weight
        total = total + (each * where).sum() / where.sum()
        chosen = part.argmax(-1) == target
        right[name] = (
            (chosen[inside] if name in ("shape", "color", "size") else chosen).float().mean().item()
        )
    error = (parts[-1] - labels.centre)[inside]
    right["centre"] = error.detach().abs().mean().item()
    return total + 20 * (error**2).mean(), right
