"""Stage 2: the understanding tower learns to see before anybody asks it.

Linear heads on every patch, thrown away afterwards, tell the shape, colour and size of the object
there, where its centre is, the background, and how many objects there are. Owns `vision_model`
only. Invariant: trained combinations only.

Shapes: B pictures, P patches, D width, Q outputs of the heads.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import JanusVisionModel

from weights.recipe.geometry import IMAGE_PX, PATCH_PX, WIDTH, janus_config
from weights.recipe.photographs import Photograph, photograph
from weights.recipe.training import Average, Optimizers, arguments, learning_rate, pixels
from weights.recipe.world import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, sample_scene

logger = logging.getLogger("vision")
GRID = IMAGE_PX // PATCH_PX
# Class "none" comes last in each of the first three.
HEADS = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "size": len(SIZES) + 1,
    "background": 3,
    "count": 3,
}
NUM_OUTPUTS = sum(HEADS.values()) + 2


@dataclass(frozen=True)
class Labels:
    """Classes `[B, P]` by head, and the centre's offset from the patch `[B, P, 2]` in picture
    sides."""

    classes: dict[str, Tensor]
    offset: Tensor


def build() -> JanusVisionModel:
    """Return an untrained tower of the final geometry."""
    ids = {"bos": 0, "eos": 1, "pad": 2, "image_placeholder": 3}
    model = JanusVisionModel(janus_config(ids, 16).vision_config)
    # Fused attention is slower than plain products for 64 patches on a CPU.
    model.set_attn_implementation("eager")
    return model


def sample_batch(
    rng: random.Random, size: int, *, held_out: bool = False
) -> tuple[list[Scene], list[Photograph]]:
    """Return scenes and their photographs; one in five is drawn as the generation targets are."""
    scenes = [sample_scene(rng, held_out=held_out, varied=rng.random() < 0.8) for _ in range(size)]
    return scenes, [photograph(scene, rng) for scene in scenes]


def label(scenes: list[Scene], photographs: list[Photograph]) -> Labels:
    """Return what the heads have to say about every patch."""
    none = {"shape": len(SHAPES), "color": len(COLORS), "size": len(SIZES)}
    classes = {name: torch.full((len(scenes), GRID * GRID), none.get(name, 0)) for name in HEADS}
    offset = torch.zeros(len(scenes), GRID * GRID, 2)
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
            offset[i, inside] = torch.stack((dx_P, dy_P), -1)[inside] / IMAGE_PX
    return Labels(classes, offset)


def loss_of(out_BPQ: Tensor, labels: Labels) -> tuple[Tensor, dict[str, float]]:
    """Return the summed loss and the share of right classes by head (of patches with an object,
    where it matters)."""
    total = torch.zeros(())
    right: dict[str, float] = {}
    parts = out_BPQ.float().split([*HEADS.values(), 2], -1)
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
    error = (parts[-1] - labels.offset)[inside]
    right["offset"] = error.detach().abs().mean().item()
    return total + 20 * (error**2).mean(), right


@torch.no_grad()
def evaluate(model: JanusVisionModel, heads: nn.Linear) -> None:
    """Log the heads' accuracy on held-out combinations."""
    rng = random.Random(7)
    scenes, photos = sample_batch(rng, 256, held_out=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = heads(model(pixels([p.image for p in photos])).last_hidden_state)
    loss, right = loss_of(out, label(scenes, photos))
    logger.info("held-out loss %.4f %s", loss.item(), {k: round(v, 4) for k, v in right.items()})


def main() -> None:
    """Run the stage and write `vision.pt` (tower and heads)."""
    args = arguments(__doc__, steps=3000, batch=48)
    rng = random.Random(args.seed)
    model, heads = build(), nn.Linear(WIDTH, NUM_OUTPUTS)
    both = nn.ModuleDict({"tower": model, "heads": heads})
    optimizers = Optimizers(both, inner=("encoder.layers",))
    average = Average(both, decay=0.998)
    started = time.monotonic()
    for step in range(args.steps):
        scenes, photos = sample_batch(rng, args.batch)
        with torch.autocast("cpu", torch.bfloat16):
            out = heads(model(pixels([p.image for p in photos])).last_hidden_state)
        loss, right = loss_of(out, label(scenes, photos))
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizers.step(learning_rate(step, args.steps, peak=2e-3, warmup=100))
        average.update(both)
        if step % 50 == 49:
            rate = (step + 1) / (time.monotonic() - started)
            shares = {k: round(v, 3) for k, v in right.items()}
            logger.info("step %d loss %.4f %s %.2f steps/s", step + 1, loss.item(), shares, rate)
        if step % 500 == 499 or step == args.steps - 1:
            average.swap(both)
            evaluate(model, heads)
            torch.save(
                {"tower": model.state_dict(), "heads": heads.state_dict()}, args.work / "vision.pt"
            )
            average.swap(both)


if __name__ == "__main__":
    main()
