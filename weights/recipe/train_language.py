"""Stages 3 and 4: the language model learns to read the tower's features, then to draw as well.

With `--generation-rows 0` it trains understanding only (from `vision.pt`); else both at once in
every batch (from `codes.pt` and the checkpoint before). Under `torchrun` the processes average
their gradients. Owns all of the model but `vqmodel`. Invariant: the checkpoint written holds
averaged weights.
"""

from __future__ import annotations

import logging
import os
import random
import time
from argparse import Namespace
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, distributed, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers import JanusForConditionalGeneration

from weights.recipe import tokenizer as tokenizers
from weights.recipe import train_codes
from weights.recipe.captions import caption
from weights.recipe.geometry import WIDTH
from weights.recipe.network import (
    DRAWN_SIZES,
    PLACES_PER_SIDE,
    Losses,
    answered,
    build,
    draw,
    load_parts,
    losses,
)
from weights.recipe.perception import NUM_OUTPUTS
from weights.recipe.sequences import NUM_KINDS, Targets, Writer, collate
from weights.recipe.settle_codes import Table, look_up
from weights.recipe.training import Average, Optimizers, arguments, contact_sheet, cosine
from weights.recipe.world import sample_scene

logger = logging.getLogger("language")
# The gradients of codes are larger and noisier: a caption leaves much open, a question nothing.
TEXT_LOSS_WEIGHT, CODE_LOSS_WEIGHT, PERCEPTION_LOSS_WEIGHT = 2.0, 0.7, 0.3
PLACE_LOSS_WEIGHT = 0.3
WARMUP_STEPS = 100
DUE_BIAS = -3.5
LOG_EVERY = 25
NUM_LOSSES = 6
TRAINED = ("language_model", "lm_head", "vision_model", "aligner", "generation_")


class Trainer:
    """One process' model, data and optimiser."""

    def __init__(self, work: Path, *, seed: int) -> None:
        self.work = work
        self.rank = int(os.environ.get("RANK", "0"))
        self.num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if self.num_ranks > 1:
            distributed.init_process_group("gloo")
        self.tokenizer = self._tokenizer()
        self.writer = Writer(self.tokenizer)
        self.rng = random.Random(seed * 1000 + self.rank)
        self.table: Table = {}
        self.targets = Targets(self.encode)
        self.model = build(self.tokenizer)
        self.heads = nn.Linear(WIDTH, NUM_OUTPUTS)
        self.locators = nn.ModuleDict(
            {
                "places": nn.Linear(WIDTH, 2 * PLACES_PER_SIDE),
                "drawn": nn.Linear(WIDTH, sum(DRAWN_SIZES)),
                "due": nn.Linear(WIDTH, NUM_KINDS),
            }
        )
        # Few of the kinds are ever due.
        nn.init.zeros_(self.locators["due"].weight)
        nn.init.constant_(self.locators["due"].bias, DUE_BIAS)
        for name, p in self.model.named_parameters():
            p.requires_grad_(any(part in name for part in TRAINED))

    def _tokenizer(self) -> Tokenizer:
        path = self.work / "tokenizer.json"
        if not path.exists():
            tokenizers.build().save(str(path))
        return Tokenizer.from_file(str(path))

    def load(self, start: str) -> None:
        """Load the named checkpoint, or without a name only the tower; and the codes, if any."""
        seeing = torch.load(self.work / "vision.pt", weights_only=True)
        self.heads.load_state_dict(seeing["heads"])
        if (self.work / "locators.pt").exists():
            known = torch.load(self.work / "locators.pt", weights_only=True)
            self.locators.load_state_dict(known)
        if start:
            self.model.load_state_dict(torch.load(self.work / start, weights_only=True))
        else:
            load_parts(self.model, {"model.vision_model": seeing["tower"]})
        if (self.work / "settled.pt").exists():
            settled = torch.load(self.work / "settled.pt", weights_only=True)
            load_parts(self.model, {"model.vqmodel": settled})

    def encode(self, images: list[Image.Image]) -> Tensor:
        """Return the codes of canonical pictures."""
        if not self.table:
            self.table = torch.load(self.work / "table.pt", weights_only=True)
        return look_up(self.table, images)

    def losses_of(self, understanding: int, generation: int) -> Losses:
        """Return the losses of a fresh batch of so many rows."""
        rows = [self.writer.understanding(self.rng) for _ in range(understanding)]
        rows += [
            self.writer.generation(self.rng, [target])
            for target in self.targets.sample(self.rng, generation)
        ]
        batch = collate(rows, pad=self.writer.special["pad"])
        with torch.autocast("cpu", torch.bfloat16):
            # A frozen tower learns nothing from perception.
            trained = any(p.requires_grad for p in self.model.model.vision_model.parameters())
            return losses(self.model, batch, self.heads if trained else None, self.locators)

    def backward(self, understanding: int, generation: int) -> list[float]:
        """Add the gradients of a fresh batch of so many rows; return its losses.

        The two kinds pass one after the other: drawings are short, conversations long, and padding
        one to the other costs more than a second pass.
        """
        seen = [0.0] * NUM_LOSSES
        for kind in ((understanding, 0), (0, generation)):
            if any(kind):
                found = self.losses_of(*kind)
                located = found.places + found.drawn + found.due
                (
                    TEXT_LOSS_WEIGHT * found.text
                    + CODE_LOSS_WEIGHT * found.codes
                    + PERCEPTION_LOSS_WEIGHT * found.perception
                    + PLACE_LOSS_WEIGHT * located
                ).backward()
                seen = [total + loss.item() for total, loss in zip(seen, found[:-1], strict=True)]
        return seen

    def parameters(self) -> list[nn.Parameter]:
        """Return all that is trained."""
        return [*self.model.parameters(), *self.heads.parameters(), *self.locators.parameters()]

    def average_gradients(self, progress: float) -> float:
        """Replace gradients by their mean over all processes; return the mean of `progress` too."""
        if self.num_ranks == 1:
            return progress
        # A process whose batch has no picture, drawing or name still sends zeros for them.
        trained = [p for p in self.parameters() if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in trained if p.grad is not None]
        flat = parameters_to_vector([*grads, torch.tensor([progress])])
        distributed.all_reduce(flat)
        flat.div_(self.num_ranks)
        vector_to_parameters(flat[:-1], grads)
        return float(flat[-1])

    @torch.no_grad()
    def evaluate(self, *, num_rows: int = 48) -> None:
        """Log the share of exact answers on held-out combinations, by kind."""
        rng = random.Random(5)
        right: dict[str, list[bool]] = defaultdict(list)
        for _ in range(num_rows // 16):
            rows = [self.writer.understanding(rng, held_out=True) for _ in range(16)]
            batch = collate(rows, pad=self.writer.special["pad"])
            with torch.autocast("cpu", torch.bfloat16):
                found = losses(self.model, batch)
            for kind, good in answered(batch, found.chosen_BT):
                right[kind].append(good)
        total = [good for goods in right.values() for good in goods]
        shares = {kind: round(sum(goods) / len(goods), 3) for kind, goods in sorted(right.items())}
        logger.info("held-out answers: %.4f of %d %s", sum(total) / len(total), len(total), shares)

    @torch.no_grad()
    def sheet(self, path: Path, *, guidance: float = 3.0) -> None:
        """Draw sixteen held-out captions, which are logged, to a contact sheet."""
        rng = random.Random(11)
        texts = [
            caption(sample_scene(rng, held_out=True, varied=False), rng, plain=True).text
            for _ in range(16)
        ]
        generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            prompts = [self.writer.drawing_ids(t) for t in texts]
            codes = draw(self.model, prompts, guidance=guidance, generator=generator)
        contact_sheet(
            train_codes.decode_codes(self.model.model.vqmodel, codes), columns=4, zoom=3
        ).save(path)
        path.with_suffix(".txt").write_text("\n".join(texts) + "\n")


def main() -> None:
    """Run the stage and write `<name>.pt`."""
    args = arguments(
        __doc__,
        {"start": "", "name": "understanding"},
        steps=2000,
        # Where the machine's speed is unknown: the learning rate follows the clock instead.
        minutes=0,
        understanding_rows=8,
        generation_rows=0,
        evaluate_every=250,
        peak_e5=150,
        last_percent=40,
        tower_percent=0,
        # Needs a C++ compiler; two thirds of the time of a step.
        compiled=0,
    )
    trainer = Trainer(args.work, seed=args.seed)
    trainer.load(args.start)
    train(trainer, args)
    if trainer.num_ranks > 1:
        distributed.destroy_process_group()


def train(trainer: Trainer, args: Namespace) -> None:
    """Train the model in place and save its average now and then."""
    model = trainer.model
    model.model.vision_model.requires_grad_(args.tower_percent > 0)
    if args.compiled:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=True)
    both = nn.ModuleDict({"model": model, "heads": trainer.heads, "locators": trainer.locators})
    optimizers = Optimizers(
        both,
        inner=("encoder.layers", "language_model.layers"),
        scales={"vision_model": args.tower_percent / 100},
    )
    average = Average(model, decay=0.998)
    peak, last = args.peak_e5 * 1e-5, args.last_percent / 100
    started, seen, step, progress = time.monotonic(), [0.0] * NUM_LOSSES, 0, 0.0
    while progress < 1:
        each = trainer.backward(args.understanding_rows, args.generation_rows)
        seen = [total + loss for total, loss in zip(seen, each, strict=True)]
        step += 1
        elapsed_s = time.monotonic() - started
        done = elapsed_s / (60 * args.minutes) if args.minutes else step / args.steps
        progress = trainer.average_gradients(done)
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        rate = min(step / WARMUP_STEPS, 1.0) * cosine(progress, last=last)
        optimizers.step(peak * rate)
        average.update(model)
        if trainer.rank == 0 and step % LOG_EVERY == 0:
            logger.info(
                "step %d (%.1f %%) text %.4f codes %.4f "
                "perception %.4f places %.4f drawn %.4f due %.4f, %.2f steps/s",
                step,
                100 * progress,
                *(total / LOG_EVERY for total in seen),
                step / elapsed_s,
            )
            seen = [0.0] * NUM_LOSSES
        if trainer.rank == 0 and (step % args.evaluate_every == 0 or progress >= 1):
            average.swap(model)
            save(trainer, args.work / f"{args.name}.pt", draws=args.generation_rows > 0)
            average.swap(model)


def save(trainer: Trainer, path: Path, *, draws: bool) -> None:
    """Evaluate the model as it is, and write it."""
    trainer.evaluate()
    if draws:
        trainer.sheet(path.with_suffix(".png"))
    state: dict[str, Tensor] = JanusForConditionalGeneration.state_dict(trainer.model)
    torch.save(state, path)
    torch.save(trainer.locators.state_dict(), trainer.work / "locators.pt")


if __name__ == "__main__":
    main()
