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

import torch
from torch import nn
from transformers import JanusVisionModel

from weights.recipe.geometry import WIDTH, janus_config
from weights.recipe.perception import NUM_OUTPUTS, label, loss_of
from weights.recipe.photographs import Photograph, photograph
from weights.recipe.training import Average, Optimizers, arguments, learning_rate, pixels
from weights.recipe.world import Scene, sample_scene

logger = logging.getLogger("vision")


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
