"""Pictures to codes and back, beside the engine, and which codes of a picture to keep.

Owns the thread that the VQ autoencoder runs in for these. Knows no prompts and no requests.
Invariants: one picture at a time, behind the compute threads and beside the stream of the steps, so
that a step of the engine is held up by little; what is kept of a picture is told by the place of
its codes, in raster order.

Keeping codes is an approximation: the models were trained to draw whole pictures, in raster order.
A drawn code knows what is above and to the left of it, kept or not, and nothing of what is kept
below. Encoding a drawn picture gives most of its codes back, not all: nine in ten with the embedded
checkpoint, and a picture that differs by about one level of 255 on average.

Shape suffixes: B pictures, S codes of a picture, H height, W width, C channels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from janus_core.engine.render import enter_background
from janus_core.errors import ASLEEP_RETRY_S, AsleepError, ParameterError
from janus_core.images import Pixels
from janus_core.models.janus import JanusModel
from janus_core.ops.streams import new_stream


class PictureCodec:
    """Encodes and decodes with the VQ autoencoder of a model. Threads can share it; each call
    takes up to seconds on a CPU."""

    def __init__(self, model: JanusModel) -> None:
        self._model: JanusModel | None = model
        self._vq = model.config.vq
        enter = partial(enter_background, model.device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="codec", initializer=enter)
        self._stream = new_stream(model.device)

    def attach(self, model: JanusModel) -> None:
        """Go on with this network after `detach`."""
        self._model = model

    def detach(self) -> JanusModel:
        """Let go of the network and return it; until `attach` nothing is encoded or decoded."""
        model, self._model = self._network(), None
        return model

    def encode(self, levels_HWC: Pixels) -> tuple[int, ...]:
        """The codes of a picture of the native size. Raises AsleepError, as `decode` does."""
        return self._pool.submit(self._encode, levels_HWC).result()

    def decode(self, codes: Sequence[int]) -> Pixels:
        """The picture of a complete sequence of codes.

        Raises ParameterError for a wrong number of codes, or numbers that are no codes.
        """
        vq = self._vq
        if len(codes) != vq.num_codes:
            raise ParameterError(
                f"{len(codes)} codes were given, but a picture has {vq.num_codes}.", param="codes"
            )
        for code in codes:
            if not 0 <= code < vq.codebook_size:
                raise ParameterError(
                    f"{code} is no code: codes are within [0, {vq.codebook_size}).", param="codes"
                )
        return self._pool.submit(self._decode, tuple(codes)).result()

    def _encode(self, levels_HWC: Pixels) -> tuple[int, ...]:
        levels = torch.from_numpy(levels_HWC.astype(np.float32)).permute(2, 0, 1)
        with self._stream():
            (codes_S,) = self._network().encode_codes((levels / 255 * 2 - 1)[None]).tolist()
        return tuple(codes_S)

    def _decode(self, codes: tuple[int, ...]) -> Pixels:
        codes_BS = torch.tensor([codes], dtype=torch.int64)
        with self._stream():
            pixels: Pixels = self._network().decode_codes(codes_BS)[0].cpu().numpy()
        return pixels

    def _network(self) -> JanusModel:
        if self._model is None:
            raise AsleepError("The server is asleep.", retry_after_s=ASLEEP_RETRY_S)
        return self._model


def keep_unmarked(codes: Sequence[int], marks: Sequence[int]) -> tuple[int | None, ...]:
    """The codes without those that are marked for drawing, not 0, at the same place."""
    return tuple(None if mark else code for code, mark in zip(codes, marks, strict=True))


def keep_first(codes: Sequence[int], *, strength: float) -> tuple[int | None, ...]:
    """The codes without the last share of `strength` (0 to 1) of them, at least one.

    The first are kept because the models draw in this order: what follows is a picture they could
    have drawn. Among codes kept here and there they leave debris, of anything but the prompt.
    Raises ParameterError for another strength.
    """
    if not 0.0 <= strength <= 1.0:
        raise ParameterError(
            f"strength must be within [0, 1], but is {strength}.", param="strength"
        )
    num_drawn = max(1, round(strength * len(codes)))
    return (*codes[: len(codes) - num_drawn], *[None] * num_drawn)
