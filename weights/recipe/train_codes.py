"""Stage 1: the VQ autoencoder that turns a canonical scene into 64 codes and back.

Plain autoencoder first (latents on the unit sphere, with noise), then spherical k-means over its
latents as the codebook, then training through the quantiser. Most of it runs on crops around a
shape: a whole picture is mostly background. Owns `vqmodel` only. Invariant: latents and codebook
are compared by cosine, as in deepseek's `VectorQuantizer` with `codebook_l2_norm` (Janus,
`vq_model.py`); the stored codebook is normalised.

Shapes: B pictures, N latent vectors, E code width, C codebook.
"""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import JanusVQVAE

from weights.recipe.fast_norm import use_fast_group_norm
from weights.recipe.geometry import CODEBOOK_SIZE, IMAGE_PX, PATCH_PX, janus_config
from weights.recipe.training import (
    Average,
    arguments,
    contact_sheet,
    learning_rate,
    picture,
    pixels,
    set_learning_rate,
)
from weights.recipe.world import Scene, render, sample_scene

logger = logging.getLogger("codes")
CROP_PX = 32
LATENT_NOISE = 0.09
FIGURE_WEIGHT = 4.0
EDGE_WEIGHT = 4.0


def build() -> JanusVQVAE:
    """Return an untrained autoencoder of the final geometry."""
    ids = {"bos": 0, "eos": 1, "pad": 2, "image_placeholder": 3}
    return JanusVQVAE(janus_config(ids, 16).vq_config)


def latents(model: JanusVQVAE, images: Tensor) -> Tensor:
    """Return unit latents `[B, E, height / 8, width / 8]` in float32."""
    return F.normalize(model.quant_conv(model.encoder(images)).float(), dim=1)


def quantise(model: JanusVQVAE, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest codebook vectors, shaped as `z`, and their ids `[B, height, width]`."""
    codebook_CE = F.normalize(model.quantize.embedding.weight.float(), dim=1)
    ids = (z.permute(0, 2, 3, 1) @ codebook_CE.T).argmax(-1)
    return codebook_CE[ids].permute(0, 3, 1, 2), ids


def decode(model: JanusVQVAE, z: Tensor) -> Tensor:
    """Return pictures in about -1..1 for unit latents."""
    return model.decoder(model.post_quant_conv(z))


@torch.no_grad()
def encode_pictures(model: JanusVQVAE, images: list[Image.Image]) -> Tensor:
    """Return code ids `[B, 64]` in raster order."""
    with torch.autocast("cpu", torch.bfloat16):
        z = latents(model, pixels(images).to(memory_format=torch.channels_last))
    return quantise(model, z)[1].flatten(1)


@torch.no_grad()
def decode_codes(model: JanusVQVAE, ids: Tensor) -> list[Image.Image]:
    """Return pictures for code ids `[B, 64]`."""
    side = IMAGE_PX // PATCH_PX
    z = F.normalize(model.quantize.embedding.weight, dim=1)[ids].view(len(ids), side, side, -1)
    z = z.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        out = decode(model, z)
    return [picture(values) for values in out]


def figure_loss(out: Tensor, images: Tensor) -> Tensor:
    """Return a weighted L1 + L2 distance; figures and edges weigh more than background."""
    out = out.float()
    # Every border pixel of a picture is background or (seldom) figure: take the commonest one, the
    # corners' median.
    corners = torch.stack([images[:, :, i, j] for i in (0, -1) for j in (0, -1)])
    background = corners.median(0).values[:, :, None, None]
    figure = ((images - background).abs().amax(1, keepdim=True) > 0.1).float()
    edge = (F.max_pool2d(images, 3, 1, 1) + F.max_pool2d(-images, 3, 1, 1)).amax(
        1, keepdim=True
    ) > 0.1
    weight = 1 + FIGURE_WEIGHT * figure + EDGE_WEIGHT * edge.float()
    difference = out - images
    return (weight * (difference.abs() + 2 * difference**2)).sum() / (3 * weight.sum())


def _batch(rng: random.Random, size: int, *, crop: bool) -> Tensor:
    """Return canonical pictures, or crops of them at a multiple of 8 pixels that hold a shape's
    centre."""
    images = []
    for _ in range(size):
        scene = sample_scene(rng, varied=False)
        image = render(scene, IMAGE_PX)
        images.append(_crop(rng, image, scene) if crop else image)
    return pixels(images).to(memory_format=torch.channels_last)


def _crop(rng: random.Random, image: Image.Image, scene: Scene) -> Image.Image:
    item = rng.choice(scene.objects)
    corner = []
    for centre in (item.x * IMAGE_PX, item.y * IMAGE_PX):
        low, high = max(0, centre - CROP_PX + 8), min(IMAGE_PX - CROP_PX, centre - 8)
        corner.append(rng.randrange(int(low) // 8, int(high) // 8 + 1) * 8)
    return image.crop((corner[0], corner[1], corner[0] + CROP_PX, corner[1] + CROP_PX))


class Codebook:
    """Follows the latents by moving averages; unused codes move onto latents seen lately."""

    def __init__(self, embedding: nn.Embedding, *, decay: float = 0.985) -> None:
        self.embedding = embedding
        self.decay = decay
        self.counts_C = torch.ones(embedding.num_embeddings)
        self.sums_CE = F.normalize(embedding.weight.detach().float(), dim=1).clone()

    @torch.no_grad()
    def update(self, z_NE: Tensor, ids_N: Tensor, *, restart: bool) -> int:
        """Move the codes towards the latents assigned to them; return how many were restarted."""
        counts_C = torch.bincount(ids_N, minlength=len(self.counts_C)).float()
        sums_CE = torch.zeros_like(self.sums_CE).index_add_(0, ids_N, z_NE)
        self.counts_C.mul_(self.decay).add_(counts_C, alpha=1 - self.decay)
        self.sums_CE.mul_(self.decay).add_(sums_CE, alpha=1 - self.decay)
        dead = (
            (self.counts_C < 1e-3).nonzero().flatten()
            if restart
            else torch.empty(0, dtype=torch.long)
        )
        if len(dead):
            codebook_CE = F.normalize(self.embedding.weight, dim=1)
            worst = (z_NE * codebook_CE[ids_N]).sum(1).argsort()[: max(1, len(z_NE) // 20)]
            dead = dead[: len(worst)]
            chosen = worst[torch.randperm(len(worst))[: len(dead)]]
            self.counts_C[dead] = 0.02
            self.sums_CE[dead] = z_NE[chosen] * 0.02
        self.embedding.weight.copy_(F.normalize(self.sums_CE, dim=1))
        return len(dead)


@torch.no_grad()
def set_codebook(
    model: JanusVQVAE, rng: random.Random, *, num_batches: int = 60, rounds: int = 25
) -> None:
    """Fill the codebook by spherical k-means over latents, among which plain background is thinned
    out."""
    found = []
    for _ in range(num_batches):
        images = _batch(rng, 16, crop=False)
        with torch.autocast("cpu", torch.bfloat16):
            z = latents(model, images)
        flat = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
        busy = (flat.amax(-1) - flat.amin(-1)).amax(1) > 0.1
        keep = busy | (torch.rand(busy.shape) < 0.08)
        found.append(z.permute(0, 2, 3, 1)[keep])
    z_NE = torch.cat(found)
    codebook_CE = z_NE[torch.randperm(len(z_NE))[:CODEBOOK_SIZE]].clone()
    for _ in range(rounds):
        score, ids = (z_NE @ codebook_CE.T).max(1)
        counts = torch.bincount(ids, minlength=CODEBOOK_SIZE)
        codebook_CE = F.normalize(torch.zeros_like(codebook_CE).index_add_(0, ids, z_NE), dim=1)
        empty = (counts == 0).nonzero().flatten()
        codebook_CE[empty] = z_NE[score.argsort()[: len(empty)]]
    logger.info("k-means over %d latents: mean cosine %.4f", len(z_NE), score.mean().item())
    model.quantize.embedding.weight.copy_(codebook_CE)


def evaluate(model: JanusVQVAE, path: Path) -> None:
    """Log the error over held-out scenes and save originals above reconstructions as a contact
    sheet."""
    rng = random.Random(99)
    images = [render(sample_scene(rng, held_out=True, varied=False), IMAGE_PX) for _ in range(32)]
    ids = encode_pictures(model, images)
    made = decode_codes(model, ids)
    true, out = pixels(images), pixels(made)
    figure = (true - true[:, :, :1, :1]).abs().amax(1, keepdim=True).gt(0.1).expand_as(true)
    error = (out - true).abs() * 127.5
    logger.info(
        "held-out: mean error %.2f, in figures %.2f (of 255); %d codes used",
        error.mean(),
        error[figure].mean(),
        len(ids.unique()),
    )
    rows = [x for i in range(0, 32, 8) for x in images[i : i + 8] + made[i : i + 8]]
    contact_sheet(rows).save(path)


def train(
    model: JanusVQVAE,
    rng: random.Random,
    *,
    num_steps: int,
    crop: bool,
    quantised: bool,
    peak: float,
    sheet: Path,
) -> None:
    """Train one phase in place; the averaged weights are what remains."""
    optimizer = torch.optim.AdamW(
        [p for name, p in model.named_parameters() if "quantize" not in name],
        betas=(0.9, 0.97),
        weight_decay=0.01,
    )
    average = Average(model, decay=0.995)
    codebook = Codebook(model.quantize.embedding)
    started, seen, restarted = time.monotonic(), 0.0, 0
    for step in range(num_steps):
        set_learning_rate(optimizer, learning_rate(step, num_steps, peak=peak))
        images = _batch(rng, 16, crop=crop)
        with torch.autocast("cpu", torch.bfloat16):
            z = latents(model, images)
            out, ids, commitment = _through_bottleneck(model, z, quantised=quantised)
        loss = figure_loss(out, images)
        (loss + 0.25 * commitment).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)
        if quantised and step < 0.8 * num_steps:
            restart = step > 50 and step % 10 == 0 and step < 0.6 * num_steps
            restarted += codebook.update(
                z.detach().permute(0, 2, 3, 1).flatten(0, 2), ids.flatten(), restart=restart
            )
        seen += loss.item()
        if step % 100 == 99:
            rate = (step + 1) / (time.monotonic() - started)
            logger.info(
                "step %d loss %.4f commitment %.4f restarted %d, %.2f steps/s",
                step + 1,
                seen / 100,
                commitment.item(),
                restarted,
                rate,
            )
            seen, restarted = 0.0, 0
        if quantised and step % 500 == 499:
            average.swap(model)
            evaluate(model, sheet)
            torch.save(model.state_dict(), sheet.with_suffix(".pt"))
            average.swap(model)
    codes = model.quantize.embedding.weight.detach().clone()
    average.swap(model)
    model.quantize.embedding.weight.data.copy_(codes)


def _through_bottleneck(
    model: JanusVQVAE, z: Tensor, *, quantised: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, code ids and the commitment loss; without codes, noise takes their place."""
    if not quantised:
        noisy = F.normalize(z + LATENT_NOISE * torch.randn_like(z), dim=1)
        return decode(model, noisy), torch.empty(0, dtype=torch.long), z.new_zeros(())
    q, ids = quantise(model, z)
    # Straight through: the decoder sees the code, the encoder gets the decoder's gradient.
    return decode(model, z + (q - z).detach()), ids, ((z - q) ** 2).sum(1).mean()


def main() -> None:
    """Run the stage and write `codes.pt`."""
    args = arguments(__doc__, {"start": ""}, plain_steps=1500, crop_steps=1000, whole_steps=2000)
    rng = random.Random(args.seed)
    model = build().to(memory_format=torch.channels_last)
    use_fast_group_norm(model)
    sheet = args.work / "codes.png"
    if args.start:
        model.load_state_dict(torch.load(args.work / args.start, weights_only=True))
    else:
        train(
            model,
            rng,
            num_steps=args.plain_steps,
            crop=True,
            quantised=False,
            peak=1e-3,
            sheet=sheet,
        )
        set_codebook(model, rng)
        train(
            model, rng, num_steps=args.crop_steps, crop=True, quantised=True, peak=6e-4, sheet=sheet
        )
    evaluate(model, sheet)
    train(
        model, rng, num_steps=args.whole_steps, crop=False, quantised=True, peak=5e-4, sheet=sheet
    )
    evaluate(model, sheet)
    torch.save(model.state_dict(), args.work / "codes.pt")


if __name__ == "__main__":
    main()
