"""Sleeping: giving the memory of the device back, and taking it again.

Owns what is kept meanwhile; knows no requests. Used in the engine's thread, when no request is
live. Invariant: a network that was woken computes what it did before, bit by bit, because it is
read from the same files into the same formats.
"""

import ctypes
import gc
import logging
import time
from contextlib import suppress
from pathlib import Path

import torch

from janus_core.checkpoint import load_model
from janus_core.codec import PictureCodec
from janus_core.config import ModelConfig
from janus_core.device import Placement
from janus_core.engine.engine import Engine
from janus_core.models.janus import JanusModel

logger = logging.getLogger(__name__)


class Sleep:
    """Puts `engine` and `codec`, which share a network, to sleep and wakes them."""

    def __init__(
        self,
        engine: Engine,
        codec: PictureCodec,
        *,
        config: ModelConfig,
        directory: Path,
        placement: Placement,
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._config = config
        self._directory = directory
        self._placement = placement
        self._kept: JanusModel | None = None
        self.is_asleep = False

    def fall_asleep(self, *, keep_weights: bool) -> None:
        """Give back the KV pool, the caches and, unless they are to be kept, the weights. Again,
        with `keep_weights` false: those too."""
        if not self.is_asleep:
            assert not self._engine.has_work, "requests are live"
            self._engine.reset_caches()
            self._engine.memory.give_back(self._config)
            self._kept = self._codec.detach()
            self.is_asleep = True
        if not keep_weights:
            self._kept = None
        _give_back(self._placement.device)

    def wake(self) -> None:
        """Take it all again; weights that were not kept are read from their files. Whatever is
        raised, it is still asleep then."""
        if not self.is_asleep:
            return
        started_s = time.monotonic()
        model = self._kept
        if model is None:
            placement = self._placement
            model = load_model(
                self._directory,
                device=placement.device,
                dtype=placement.dtype,
                formats=placement.formats,
            )
        self._engine.memory.take(model)
        self._codec.attach(model)
        self._kept, self.is_asleep = None, False
        logger.info("Awake again after %.1f s.", time.monotonic() - started_s)


def _give_back(device: torch.device) -> None:
    """Hand what is free now from the allocators to the system."""
    gc.unfreeze()  # what was frozen at start is not looked at, and modules have cycles
    gc.collect()
    gc.freeze()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
