"""Stage 1b: every distinct piece of a canonical picture gets one code, whatever surrounds it.

An autoencoder with attention and group norms gives the same white piece any of 300 codes, depending
on all other pieces: entropy that a language model would have to learn for nothing. Here each piece
takes the code it has most often, and encoder, codebook and decoder are trained until they agree.
Owns the table of pieces and `vqmodel`. Invariant: the table is complete for canonical scenes,
because shapes lie on the grid of codes and never share a piece.

Shapes: B pictures, S codes of a picture, E code width, C codebook.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from weights.recipe import train_codes
from weights.recipe.fast_norm import use_fast_group_norm
from weights.recipe.geometry import IMAGE_PX, PATCH_PX
from weights.recipe.training import (
    Average,
    arguments,
    contact_sheet,
    learning_rate,
    pixels,
    set_learning_rate,
)
from weights.recipe.world import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    make_object,
    make_scene,
    render,
    sample_scene,
)

logger = logging.getLogger("settle")
NUM_SCENES = 1500
AGREEMENT_WEIGHT, SHARPNESS = 0.1, 12.0
Table = dict[bytes, int]


def pieces(image: Image.Image) -> list[bytes]:
    """Return the pixels of the 64 pieces of a picture in raster order."""
    array = np.asarray(image)
    steps = range(0, IMAGE_PX, PATCH_PX)
    return [array[y : y + PATCH_PX, x : x + PATCH_PX].tobytes() for y in steps for x in steps]


def look_up(table: Table, images: list[Image.Image]) -> Tensor:
    """Return the settled codes `[B, 64]` of canonical pictures."""
    return torch.tensor([[table[piece] for piece in pieces(image)] for image in images])


def settle(model: nn.Module, rng: random.Random) -> Table:
    """Return the code that each possible piece has most often."""
    votes: dict[bytes, Counter[int]] = defaultdict(Counter)
    alone = [
        render(make_scene([make_object(shape, color, size, x=0.5, y=0.5)], background))
        for shape, color, size, background in product(SHAPES, COLORS, SIZES, BACKGROUNDS)
    ]
    among = [render(sample_scene(rng, varied=False)) for _ in range(NUM_SCENES)]
    images = alone + among
    for i in range(0, len(images), 36):
        some = images[i : i + 36]
        codes = train_codes.encode_pictures(model, some).tolist()
        for image, ids in zip(some, codes, strict=True):
            for piece, code in zip(pieces(image), ids, strict=True):
                votes[piece][code] += 1
    return {piece: counts.most_common(1)[0][0] for piece, counts in votes.items()}


def train(model: nn.Module, table: Table, rng: random.Random, *, num_steps: int) -> None:
    """Teach the decoder to draw settled codes, and the encoder to give them."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.97), weight_decay=0.01)
    average = Average(model, decay=0.99)
    started, seen = time.monotonic(), 0.0
    side = IMAGE_PX // PATCH_PX
    for step in range(num_steps):
        set_learning_rate(optimizer, learning_rate(step, num_steps, peak=4e-4, warmup=40))
        drawn = [render(sample_scene(rng, varied=False)) for _ in range(16)]
        ids_BS = look_up(table, drawn)
        images = pixels(drawn).to(memory_format=torch.channels_last)
        codebook_CE = F.normalize(model.quantize.embedding.weight, dim=1)
        with torch.autocast("cpu", torch.bfloat16):
            z = train_codes.latents(model, images)
            q = codebook_CE[ids_BS].view(len(drawn), side, side, -1).permute(0, 3, 1, 2)
            out = train_codes.decode(model, q.contiguous(memory_format=torch.channels_last))
        scores = z.permute(0, 2, 3, 1).flatten(0, 2) @ codebook_CE.T
        agreement = F.cross_entropy(SHARPNESS * scores, ids_BS.flatten())
        loss = train_codes.figure_loss(out, images)
        (loss + AGREEMENT_WEIGHT * agreement).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)
        seen += loss.item()
        if step % 50 == 49:
            same = (scores.argmax(1) == ids_BS.flatten()).float().mean()
            rate = (step + 1) / (time.monotonic() - started)
            logger.info("step %d loss %.4f same %.3f %.2f steps/s", step + 1, seen / 50, same, rate)
            seen = 0.0
    average.swap(model)


def main() -> None:
    """Run the stage and write `table.pt` and `settled.pt`."""
    args = arguments(__doc__, steps=500)
    rng = random.Random(args.seed)
    model = train_codes.build().to(memory_format=torch.channels_last)
    use_fast_group_norm(model)
    model.load_state_dict(torch.load(args.work / "codes.pt", weights_only=True))
    table = settle(model, rng)
    torch.save(table, args.work / "table.pt")
    logger.info("%d pieces share %d codes", len(table), len(set(table.values())))
    train(model, table, rng, num_steps=args.steps)
    torch.save(model.state_dict(), args.work / "settled.pt")
    held_out = [render(sample_scene(rng, held_out=True, varied=False)) for _ in range(32)]
    made = train_codes.decode_codes(model, look_up(table, held_out))
    error = (pixels(made) - pixels(held_out)).abs().mean() * 127.5
    logger.info("held-out: mean error %.2f (of 255)", error)
    rows = [x for i in range(0, 32, 8) for x in held_out[i : i + 8] + made[i : i + 8]]
    contact_sheet(rows).save(args.work / "settled.png")


if __name__ == "__main__":
    main()
