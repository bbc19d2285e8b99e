"""Which CUDA device, which stream and how many compute threads a thread works with.

Owns nothing but the ways to say it; a CPU has neither devices nor streams. Invariant: a thread that
was bound uses its device wherever nobody names one, as captures, Triton's launches, events and
libraries do.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch


def bind_device(device: torch.device) -> None:
    """Make `device` the calling thread's: otherwise it has device 0."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def new_stream(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Makes contexts in which everything is launched on one new stream: it does not wait for steps,
    nor steps for it."""
    if device.type != "cuda":
        return nullcontext
    return partial(torch.cuda.stream, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class ComputeThread:
    """What a thread that computes steps works with."""

    device: torch.device
    num_threads: int

    @classmethod
    def like_this(cls, device: torch.device) -> "ComputeThread":
        """With as many compute threads as the calling thread has."""
        return cls(device, torch.get_num_threads())

    def bind(self) -> None:
        """Let the calling thread work with it."""
        bind_device(self.device)
        torch.set_num_threads(self.num_threads)
