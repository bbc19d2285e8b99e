"""The work folder of a run, rebuilt from the exported checkpoint, so that training can go on.

Owns the way back from `weights/janus-mini` to what the stages read. Knows nothing of training.
Invariant: weights come back as they were exported (half precision); what is thrown away at export,
the heads that only training has, starts anew.
"""

from __future__ import annotations

import json
import logging
import shutil
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from weights.recipe.geometry import WIDTH
from weights.recipe.network import build
from weights.recipe.perception import NUM_OUTPUTS
from weights.recipe.settle_codes import Table, pieces
from weights.recipe.training import arguments
from weights.recipe.world import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    make_object,
    make_scene,
    render,
)

logger = logging.getLogger("resume")
CODES_FILE = "settled_codes.json"


def all_pieces() -> list[bytes]:
    """Return every piece a canonical picture can hold, in one fixed order."""
    found = set()
    for shape, color, size, background in product(SHAPES, COLORS, SIZES, BACKGROUNDS):
        item = make_object(shape, color, size, x=0.5, y=0.5)
        found.update(pieces(render(make_scene([item], background))))
    return sorted(found)


def write_table(table: Table, folder: Path) -> None:
    """Write the code of every piece beside the weights it belongs to."""
    codes = [table[piece] for piece in all_pieces()]
    (folder / CODES_FILE).write_text(json.dumps(codes, separators=(",", ":")) + "\n")


def read_table(folder: Path) -> Table:
    """Return what `write_table` wrote."""
    codes: list[int] = json.loads((folder / CODES_FILE).read_text())
    return dict(zip(all_pieces(), codes, strict=True))


def main() -> None:
    """Write `<work>/joint.pt` and all that `train_language` reads beside it."""
    args = arguments(__doc__, {"folder": str(Path(__file__).parents[1] / "janus-mini")})
    folder = Path(args.folder)
    shutil.copy(folder / "tokenizer.json", args.work)
    model = build(Tokenizer.from_file(str(folder / "tokenizer.json")))
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    torch.save(model.state_dict(), args.work / "joint.pt")
    torch.save(model.model.vqmodel.state_dict(), args.work / "settled.pt")
    tower = model.model.vision_model.state_dict()
    heads = nn.Linear(WIDTH, NUM_OUTPUTS).state_dict()
    torch.save({"tower": tower, "heads": heads}, args.work / "vision.pt")
    torch.save(read_table(folder), args.work / "table.pt")
    logger.info("%s holds what %s was trained from", args.work, folder)


if __name__ == "__main__":
    main()
