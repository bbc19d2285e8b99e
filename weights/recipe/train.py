"""The whole recipe in one command: every stage in order, each as a process of its own.

Owns the order and the arguments of the stages. Knows nothing of what they do. Invariant: a stage
starts only when the files it reads are complete; a failed stage ends the run.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

logger = logging.getLogger("recipe")

# Two processes with one thread each make better use of two cores than one process with two.
CODES = ("train_codes", "--plain-steps=1500", "--crop-steps=1000", "--whole-steps=2000")
SETTLE = ("settle_codes", "--steps=500")
VISION = ("train_vision", "--steps=3000", "--batch=40")
UNDERSTANDING = ("train_language", "--name=understanding", "--steps=800", "--last-percent=60")
JOINT = (
    "train_language",
    "--name=both",
    "--start=understanding.pt",
    "--steps=3000",
    "--peak-e5=70",
    "--last-percent=50",
    "--understanding-rows=7",
    "--generation-rows=12",
    "--tower-percent=60",
)
# The tower has seen enough, and drawing takes longer to learn than answering.
DRAWING = (
    "train_language",
    "--name=joint",
    "--start=both.pt",
    "--steps=5500",
    "--peak-e5=80",
    "--last-percent=1",
    "--understanding-rows=4",
    "--generation-rows=36",
    "--compiled=1",
)
NUM_RANKS = 2


def main() -> None:
    """Train from nothing and write the checkpoint's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/janus-mini"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "janus-mini")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    args.work.mkdir(parents=True, exist_ok=True)
    common = (f"--work={args.work}", f"--seed={args.seed}")
    started = time.monotonic()
    codes = _start((*CODES, *common))
    _finish([_start((*VISION, *common))])
    _finish([codes])
    _finish([_start((*UNDERSTANDING, *common)), _start((*SETTLE, *common))])
    for stage in (JOINT, DRAWING):
        _finish([_start((*stage, *common), rank=rank) for rank in range(NUM_RANKS)])
    _finish([_start(("export", "--start=joint.pt", f"--folder={args.folder}", *common))])
    logger.info("trained in %.0f minutes", (time.monotonic() - started) / 60)


def _start(stage: tuple[str, ...], *, rank: int | None = None) -> subprocess.Popen[bytes]:
    """Start `weights.recipe.<stage>`; with a rank, as one of NUM_RANKS processes."""
    logger.info("%s %s", " ".join(stage), "" if rank is None else f"(rank {rank})")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if rank is not None:
        environment |= {"RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613"}
    command = [sys.executable, "-m", f"weights.recipe.{stage[0]}", *stage[1:]]
    return subprocess.Popen(command, env=environment)


def _finish(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the stages; raise `CalledProcessError` when one has failed."""
    for process in processes:
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, process.args)


if __name__ == "__main__":
    main()
