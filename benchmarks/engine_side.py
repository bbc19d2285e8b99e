"""This engine as a side of the comparison.

Owns how the engine is driven: requests from prepared ids, `step` until enough is known. Uses what a
caller of `janus_core` uses and nothing below it. Invariant: no result of an earlier task is in a
cache when a task begins, unless the task is about that cache.
"""

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import machine, sides
from benchmarks.inputs import GUIDANCE, Inputs, PictureInputs, QuestionInputs
from benchmarks.sides import Key, Task, Work
from janus_core.checkpoint import load_model
from janus_core.device import Placement, place, with_formats
from janus_core.engine.engine import Engine
from janus_core.engine.events import Event, Failed, Finished, StepDone, TextDelta
from janus_core.engine.request import ImageInput, ImageRequest, Request, SamplingParams, TextRequest
from janus_core.engine.settings import SLOT_UNIT, EngineSettings
from janus_core.models.janus import JanusModel
from janus_core.models.picture_decoder import hasten_decoder
from janus_core.ops import native
from janus_core.tokenizer import Tokenizer

GREEDY = SamplingParams(seed=0, temperature=0.0)
FORMATS = ("fp32", "fp16", "int8")
"""Of the weights, as the settings spell them; keys and values have what `auto` gives beside it."""

Watch = Callable[[Event, float], None]
"""Is told every event and the moment at which the step that brought it was over."""


def placement(weight_format: str) -> Placement:
    """The CPU, with linear layers and the KV pool in the formats that go together."""
    on = with_formats(place("cpu", "float32"), weight_format=weight_format)
    if machine.is_avx2_only() and on.formats.native is not None:
        return replace(on, formats=replace(on.formats, native=native.load("avx2")))
    return on


def default_format() -> str:
    """What `auto` means on this machine."""
    return placement("auto").formats.weights or "fp32"


def kv_bytes(weight_format: str) -> int:
    """Bytes of a value of the KV pool."""
    return placement(weight_format).kv_dtype.itemsize


def load(directory: Path, *, weight_format: str) -> JanusModel:
    """The network in one of `FORMATS`."""
    on = placement(weight_format)
    model = load_model(directory, device=on.device, dtype=on.dtype, formats=on.formats)
    if machine.is_avx2_only():
        # What it would be on such a processor, which cannot multiply bf16.
        hasten_decoder(model.vqmodel, dtype=torch.float32)
    return model


class EngineSide:
    """The engine with one format of the weights."""

    def __init__(self, directory: Path, work: Work, *, weight_format: str) -> None:
        self.name = f"janus {weight_format}"
        self._work = work
        self._model = load(directory, weight_format=weight_format)
        self._tokenizer = Tokenizer.load(directory)
        self._settings = EngineSettings(kv_positions=_positions(work))
        self._numbers = itertools.count()
        self._engine = self._new_engine()

    def tasks(self) -> Mapping[Key, Task]:
        """Every task there is, steps first: their long prompt stays in the prefix cache."""
        made: dict[str, Task] = {
            sides.STEP: lambda: self.steps(1),
            sides.FOUR_STEP: lambda: self.steps(sides.NUM_TOGETHER),
            sides.FIRST: self.first_code,
            sides.PIXELS: self.pixels,
            sides.QUESTION: self.question,
            sides.AGAIN: self.question_again,
            sides.ALONE: lambda: self.gaps(num_pictures=0),
            sides.MIXED: lambda: self.gaps(num_pictures=sides.NUM_TOGETHER),
        }
        return {(self.name, name): task for name, task in made.items()}

    def whole_tasks(self) -> Mapping[Key, Task]:
        """All requests of a workload at once."""
        return {
            (self.name, inputs.name): partial(self.whole, inputs) for inputs in self._work.workloads
        }

    def close(self) -> None:
        """Forget the model."""
        self._engine.close()
        del self._engine, self._model
        sides.release()

    # ---- tasks ------------------------------------------------------------------------------

    def steps(self, num_pictures: int) -> list[float]:
        """Seconds of decode steps with `num_pictures` guided pictures at the mean context.

        Both prompts are put into the prefix cache beforehand, by answering them with one word.
        """
        picture = self._work.long_picture
        for ids in (picture.token_ids, picture.uncond_token_ids):
            self._run([self._text(ids, 1)])
        requests = [
            self._picture(replace(picture, seed=seed), tenant="") for seed in range(num_pictures)
        ]
        durations: list[float] = []
        wanted = self._work.effort.num_steps

        def watch(event: Event, step_s: float) -> None:
            if (
                isinstance(event, StepDone)
                and not event.num_prefill_tokens
                and event.num_cond_rows == event.num_uncond_rows == num_pictures
            ):
                durations.append(step_s)

        self._run(requests, watch=watch, is_enough=lambda: len(durations) > wanted)
        # The first step after a prefill finds other caches than those that follow.
        return durations[1:]

    def first_code(self) -> list[float]:
        """Seconds from the submission of a picture to its first code, of a prompt never seen."""
        request = self._picture(self._work.pictures[0], tenant=self._new_name())
        start = time.perf_counter()
        num_steps = [0]

        def watch(event: Event, step_s: float) -> None:
            del step_s
            # The first decode step follows the step that drew the first code.
            if isinstance(event, StepDone) and event.num_cond_rows:
                num_steps[0] += 1

        moments = self._run([request], watch=watch, is_enough=lambda: num_steps[0] > 0)
        return [moments[-2] - start]

    def pixels(self) -> list[float]:
        """Seconds of decoding the codes of one picture."""
        codes = torch.arange(self._work.num_codes)[None] % 16
        start = time.perf_counter()
        self._model.decode_codes(codes)
        return [time.perf_counter() - start]

    def question(self) -> list[float]:
        """Seconds to the first word about an image nobody has seen."""
        return [self._ask(self._work.first_question, tenant=self._new_name())]

    def question_again(self) -> list[float]:
        """Seconds to the first word of a second question about the same image."""
        tenant = self._new_name()
        self._ask(self._work.first_question, tenant=tenant)
        return [self._ask(self._work.second_question, tenant=tenant)]

    def gaps(self, *, num_pictures: int) -> list[float]:
        """Seconds between the words of four chats that began together with that many pictures."""
        tenant = self._new_name()
        pictures = [self._picture(p, tenant=tenant) for p in self._work.pictures[:num_pictures]]
        chats = [
            self._text(chat.token_ids, chat.num_tokens, tenant=tenant) for chat in self._work.chats
        ]
        last: dict[str, float] = {}
        gaps: list[float] = []
        open_ids = {chat.id for chat in chats}

        def watch(event: Event, step_s: float) -> None:
            del step_s
            now_s = time.perf_counter()
            if isinstance(event, TextDelta):
                if event.request_id in last:
                    gaps.append(now_s - last[event.request_id])
                last[event.request_id] = now_s
            elif isinstance(event, Finished):
                open_ids.discard(event.request_id)

        self._run([*pictures, *chats], watch=watch, is_enough=lambda: not open_ids)
        return gaps

    def whole(self, inputs: Inputs) -> list[float]:
        """Seconds until all requests of a workload have ended, pictures with their pixels."""
        tenant = self._new_name()
        requests = [self._picture(each, tenant=tenant) for each in inputs.pictures]
        requests += [
            self._text(each.token_ids, each.num_tokens, question=each, tenant=tenant)
            for each in inputs.questions
        ]
        start = time.perf_counter()
        self._run(requests)
        return [time.perf_counter() - start]

    # ---- below: requests and steps ------------------------------------------------------------

    def _new_engine(self) -> Engine:
        return Engine(self._model, self._tokenizer, self._settings)

    def _new_name(self) -> str:
        return f"r{next(self._numbers)}"

    def _ask(self, question: QuestionInputs, *, tenant: str) -> float:
        request = self._text(question.token_ids, 1, question=question, tenant=tenant)
        start = time.perf_counter()
        self._run([request])
        return time.perf_counter() - start

    def _run(
        self,
        requests: list[Request],
        *,
        watch: Watch | None = None,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> list[float]:
        """Step until all requests have ended or enough is known, then cancel the rest; returns the
        moments at which steps were over. A request that fails makes the measurement worthless."""
        for request in requests:
            self._engine.submit(request)
        moments: list[float] = []
        while self._engine.has_work and not is_enough():
            start = time.perf_counter()
            events = self._engine.step()
            moments.append(time.perf_counter())
            for event in events:
                if isinstance(event, Failed):
                    raise event.error
                if watch is not None:
                    watch(event, moments[-1] - start)
        for request in requests:
            self._engine.cancel(request.id)
        while self._engine.has_work:
            self._engine.step()
        return moments

    def _picture(self, picture: PictureInputs, *, tenant: str) -> Request:
        return ImageRequest(
            id=self._new_name(),
            token_ids=picture.token_ids,
            uncond_token_ids=picture.uncond_token_ids,
            guidance=GUIDANCE,
            sampling=SamplingParams(seed=picture.seed),
            tenant=tenant,
        )

    def _text(
        self,
        token_ids: tuple[int, ...],
        num_tokens: int,
        *,
        question: QuestionInputs | None = None,
        tenant: str = "",
    ) -> Request:
        return TextRequest(
            id=self._new_name(),
            token_ids=token_ids,
            sampling=GREEDY,
            max_tokens=num_tokens,
            min_tokens=num_tokens,
            images=_images(question),
            tenant=tenant,
        )


def _positions(work: Work) -> int:
    """Enough for the largest task, and for what the tasks leave in the prefix cache."""

    def needed(pictures: Sequence[PictureInputs], questions: Sequence[QuestionInputs]) -> int:
        drawn = sum(2 * (len(each.token_ids) + work.num_codes + SLOT_UNIT) for each in pictures)
        said = sum(len(each.token_ids) + each.num_tokens + SLOT_UNIT for each in questions)
        return drawn + said

    together = sides.NUM_TOGETHER
    largest = max(
        needed([work.long_picture] * together, ()),
        needed(work.pictures[:together], work.chats),
        *(needed(each.pictures, each.questions) for each in work.workloads),
    )
    # The pool keeps a quarter of itself from each kind of request.
    return int(1.4 * (largest + needed((), [work.first_question, work.second_question])))


def _images(question: QuestionInputs | None) -> tuple[ImageInput, ...]:
    if question is None or question.pixels_CHW is None:
        return ()
    digest = hashlib.sha256(question.pixels_CHW.tobytes()).digest()
    num_tokens = question.token_ids.count(question.token_ids[question.first])
    return (ImageInput(digest, question.pixels_CHW, question.first, num_tokens),)
