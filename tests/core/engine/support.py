"""What the engine's tests share: requests in a few words, and running them to the end."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from janus_core.engine.engine import Engine
from janus_core.engine.events import (
    Event,
    Failed,
    Finished,
    ImageProgress,
    Preview,
    Started,
    StepDone,
    TextDelta,
)
from janus_core.engine.request import ImageInput, ImageRequest, SamplingParams, TextRequest
from janus_core.engine.settings import EngineSettings
from janus_core.models.janus import JanusModel
from janus_core.tokenizer import Tokenizer

GREEDY = SamplingParams(seed=0, temperature=0.0)


@dataclass
class Outcome:
    """All that was said about one request."""

    events: list[Event] = field(default_factory=list)

    @property
    def end(self) -> Finished | Failed:
        (end,) = [event for event in self.events if isinstance(event, Finished | Failed)]
        assert self.events[-1] is end, "nothing follows the terminal event"
        return end

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def ids(self) -> list[int]:
        deltas = [event for event in self.events if isinstance(event, TextDelta)]
        return [token.token_id for delta in deltas for token in delta.tokens]

    @property
    def codes(self) -> list[int]:
        assert isinstance(self.end, Finished)
        return list(self.end.codes)

    def of_type(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


class Log:
    """Collects events by request, and the steps."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.steps: list[StepDone] = []

    def __getitem__(self, request_id: str) -> Outcome:
        return self.outcomes[request_id]

    def add(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, StepDone):
                self.steps.append(event)
            else:
                self.outcomes.setdefault(event.request_id, Outcome()).events.append(event)


def run(engine: Engine, *requests: TextRequest | ImageRequest) -> Log:
    """Submit requests at once and step until all have ended; nothing may be left behind."""
    for request in requests:
        engine.submit(request)
    log = finish(engine)
    assert {request.id for request in requests} <= log.outcomes.keys()
    return log


def finish(engine: Engine, log: Log | None = None, *, max_steps: int = 5000) -> Log:
    """Step until no work is left."""
    log = log or Log()
    for _ in range(max_steps):
        if not engine.has_work:
            break
        log.add(engine.step())
        engine.check_integrity()
    assert not engine.has_work, "the engine does not come to an end"
    assert engine.stats().kv_usage == 0, "a slot is left in use"
    for outcome in log.outcomes.values():
        assert outcome.end
    return log


class Requests:
    """Makes requests for a model; ids are given, everything else has a default."""

    def __init__(self, model: JanusModel, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def text(
        self,
        request_id: str,
        prompt: str = "What is it?",
        *,
        images: tuple[int, ...] = (),
        sampling: SamplingParams = GREEDY,
        max_tokens: int = 8,
        **fields,
    ) -> TextRequest:
        """`images` are seeds of noise images, put in front of the prompt."""
        tokenizer, num_tokens = self.tokenizer, self.model.config.vision.num_image_tokens
        ids = [tokenizer.bos_id]
        inputs = []
        for seed in images:
            inputs.append(self._image_input(seed, first=len(ids) + 1))
            placeholders = [tokenizer.image_placeholder_id] * num_tokens
            ids += [tokenizer.begin_of_image_id, *placeholders, tokenizer.end_of_image_id]
        ids += tokenizer.encode_text(prompt)
        return TextRequest(
            id=request_id,
            token_ids=tuple(ids),
            images=tuple(inputs),
            sampling=sampling,
            max_tokens=max_tokens,
            **fields,
        )

    def image(
        self,
        request_id: str,
        prompt: str = "a red circle",
        *,
        guidance: float | None = 5.0,
        sampling: SamplingParams = GREEDY,
        **fields,
    ) -> ImageRequest:
        """`guidance` None draws without an unconditional sequence."""
        tokenizer = self.tokenizer
        words = tokenizer.encode_text(prompt)
        first, last = tokenizer.bos_id, tokenizer.begin_of_image_id
        uncond = (first, *[tokenizer.pad_id] * len(words), last)
        return ImageRequest(
            id=request_id,
            token_ids=(first, *words, last),
            uncond_token_ids=None if guidance is None else uncond,
            guidance=1.0 if guidance is None else guidance,
            sampling=sampling,
            **fields,
        )

    def engine(self, **settings) -> Engine:
        # Promises that every step keeps: what a step contains does not depend on the clock.
        defaults = EngineSettings(
            max_sequences=40,
            step_token_budget=512,
            chat_slowdown=math.inf,
            token_time_s=math.inf,
            image_time_s=math.inf,
        )
        return Engine(self.model, self.tokenizer, replace(defaults, **settings))

    def _image_input(self, seed: int, *, first: int) -> ImageInput:
        vision = self.model.config.vision
        generator = torch.Generator().manual_seed(seed)
        size = (3, vision.image_size, vision.image_size)
        pixels = torch.randn(size, generator=generator).numpy().astype(np.float32)
        return ImageInput(
            digest=seed.to_bytes(32, "big"),
            pixels_CHW=pixels,
            first=first,
            num_tokens=vision.num_image_tokens,
        )


__all__ = [
    "GREEDY",
    "ImageProgress",
    "Log",
    "Outcome",
    "Preview",
    "Requests",
    "Started",
    "finish",
    "run",
]
