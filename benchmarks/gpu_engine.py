"""A real engine on a GPU: one picture from request to pixels, and many in flight.

Owns the load and the bars; part of `gpu_check.py`. The engine runs in its thread and decodes in
another, as under the server; the model has random weights, whose pictures take as long. The bars
are those that were set for an H200; on another card the figures are shown and not judged.
"""

import queue
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.gpu_model import CONFIGS, random_model
from benchmarks.gpu_report import Check
from janus_core.config import ModelConfig
from janus_core.device import Placement, fit
from janus_core.engine.settings import EngineSettings

TOKENIZER = Path(__file__).parents[1] / "weights" / "janus-mini"
"""Only its control tokens matter: nothing is read or written in words."""

CARD = "H200"
PROMPT_TOKENS = 30
IN_FLIGHT = 64
ROUNDS = 3
"""Pictures measured one by one; and of those in flight, so many times as many are drawn in all."""


@dataclass(frozen=True, slots=True)
class Bars:
    """Seconds of one picture at most, and pictures a second at `IN_FLIGHT` at least."""

    one_s: float
    images_per_s: float


BARS = {"1b": Bars(0.6, 30.0), "7b": Bars(2.6, 10.0)}


class Drawing:
    """An engine that draws, and the clock beside it."""

    def __init__(self, check: Check, config: ModelConfig) -> None:
        # Here, because the engine needs packages that the rest of the check does not.
        from janus_core.engine.engine import Engine
        from janus_core.engine.service import EngineService
        from janus_core.ops.streams import bind_device
        from janus_core.tokenizer import Tokenizer

        bind_device(check.device)
        dtype = torch.float32 if check.is_rehearsal else torch.bfloat16
        self._tokenizer = Tokenizer.load(TOKENIZER)
        if check.is_rehearsal:
            vocab_size = self._tokenizer.num_ids
            config = replace(config, backbone=replace(config.backbone, vocab_size=vocab_size))
        model = random_model(config, device=check.device, dtype=dtype)
        settings = fit(
            EngineSettings(threaded_rendering=True), config, Placement(check.device, dtype)
        )
        engine = Engine(model, self._tokenizer, settings)
        self.attention = engine.attention_backend
        self._ended: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.service = EngineService(engine, self._sink)
        self.service.start()
        self._num_sent = 0

    def _sink(self, events: object) -> None:
        from janus_core.engine.events import Failed, Finished

        for event in events:
            if isinstance(event, Finished | Failed):
                self._ended.put(event)

    def send(self) -> None:
        """Ask for one more picture."""
        from janus_core.engine.request import ImageRequest, SamplingParams

        self._num_sent += 1
        tokenizer = self._tokenizer
        first, last = tokenizer.bos_id, tokenizer.begin_of_image_id
        words = [(7 * i + self._num_sent) % 256 for i in range(PROMPT_TOKENS)]
        self.service.submit(
            ImageRequest(
                id=str(self._num_sent),
                token_ids=(first, *words, last),
                uncond_token_ids=(first, *[tokenizer.pad_id] * len(words), last),
                guidance=5.0,
                sampling=SamplingParams(seed=self._num_sent, temperature=1.0),
            )
        )

    def wait(self) -> None:
        """Wait for one that ends; raises if it failed."""
        ended = self._ended.get(timeout=300)
        error = getattr(ended, "error", None)
        if error is not None:
            raise error

    def one_s(self) -> float:
        """From request to pixels, alone."""
        started_s = time.perf_counter()
        self.send()
        self.wait()
        return time.perf_counter() - started_s

    def images_per_s(self, in_flight: int, total: int) -> float:
        """With as many in flight all the time, until the last ones."""
        started_s = time.perf_counter()
        for index in range(total):
            if index >= in_flight:
                self.wait()
            self.send()
        for _ in range(in_flight):
            self.wait()
        return total / (time.perf_counter() - started_s)


def check_engine(check: Check, name: str) -> None:
    """One size of the model, against its bars."""
    drawing = Drawing(check, CONFIGS[name])
    try:
        in_flight = 2 if check.is_rehearsal else IN_FLIGHT
        drawing.one_s()
        drawing.images_per_s(in_flight, in_flight)  # captures what is not captured yet
        one_s = sorted(drawing.one_s() for _ in range(ROUNDS))[ROUNDS // 2]
        images_per_s = drawing.images_per_s(in_flight, ROUNDS * in_flight)
    finally:
        drawing.service.stop()
    check.say(f"\n| a real engine, {name}, attention by {drawing.attention} | |\n|---|---|")
    check.say(f"| one picture, from request to pixels | {one_s:.3f} s |")
    check.say(f"| {in_flight} pictures in flight | {images_per_s:.2f} images/s |")
    bars = BARS.get(name, Bars(0.0, 0.0))
    check.bar(f"{name}: seconds of one picture", one_s, at_most=bars.one_s, card=CARD)
    check.bar(
        f"{name}: images/s at {in_flight} in flight",
        images_per_s,
        at_least=bars.images_per_s,
        card=CARD,
    )
