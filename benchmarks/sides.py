"""The two sides of the comparison: transformers' generate and our engine, given the same token ids.

Owns how each side is driven, and its clock: from prompt ids and preprocessed pixels to text and RGB
pixels. Invariant: both sides get the same ids, pixels, weights, number of threads and number of
tokens to make. What is not generation (preprocessing, loading, allocation) is outside the clock.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import JanusForConditionalGeneration

from benchmarks.workloads import Picture, Question, Workload
from janus_core.checkpoint import load_model
from janus_core.config import read_config
from janus_core.engine.engine import Engine
from janus_core.engine.events import Event, Failed, Finished, StepDone, TextDelta
from janus_core.engine.request import ImageInput, ImageRequest, Request, SamplingParams, TextRequest
from janus_core.engine.settings import EngineSettings
from janus_core.images import ImageProcessor
from janus_core.prompt import Message, PromptBuilder
from janus_core.tokenizer import Tokenizer

GUIDANCE = 5.0

Clock = Callable[[], float]
"""Seconds since some moment: `time.perf_counter`, or `time.process_time` on a busy machine."""


@dataclass(frozen=True, slots=True)
class PictureInputs:
    """The ids of a picture's two sequences."""

    token_ids: tuple[int, ...]
    uncond_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class QuestionInputs:
    """The ids of a question, its pixels and where they go."""

    token_ids: tuple[int, ...]
    pixels_CHW: npt.NDArray[np.float32]
    first: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """A workload as both sides receive it."""

    name: str
    pictures: tuple[PictureInputs, ...]
    questions: tuple[QuestionInputs, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. `answers` are token ids; `steps` is empty where a side has none to show."""

    duration_s: float
    answers: tuple[tuple[int, ...], ...]
    num_pictures: int
    steps: tuple[StepDone, ...] = ()


class InputBuilder:
    """Makes ids and pixels once, for both sides."""

    def __init__(self, directory: Path) -> None:
        self.config = read_config(directory)
        self.tokenizer = Tokenizer.load(directory)
        self._prompts = PromptBuilder.load(directory, tokenizer=self.tokenizer, config=self.config)
        self._processor = ImageProcessor.load(directory)

    def build(self, workload: Workload) -> Inputs:
        """Return the workload as ids and pixels."""
        pictures = tuple(self._picture(picture) for picture in workload.pictures)
        questions = tuple(self._question(question) for question in workload.questions)
        return Inputs(workload.name, pictures, questions)

    def _picture(self, picture: Picture) -> PictureInputs:
        prompt = self._prompts.generation(picture.prompt)
        return PictureInputs(prompt.token_ids, prompt.uncond_token_ids, picture.seed)

    def _question(self, question: Question) -> QuestionInputs:
        message = Message("user", (question.image, question.text))
        prompt = self._prompts.understanding((message,))
        ((first, image),) = prompt.images
        pixels_CHW = self._processor.preprocess(image)
        return QuestionInputs(prompt.token_ids, pixels_CHW, first, question.num_tokens)


class TransformersSide:
    """`JanusForConditionalGeneration.generate`, one request after the other."""

    def __init__(self, directory: Path, *, clock: Clock) -> None:
        self._clock = clock
        self._model = JanusForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32
        ).eval()

    @torch.inference_mode()
    def run(self, inputs: Inputs) -> Outcome:
        """Draw and answer everything, and say how long it took."""
        start = self._clock()
        pixels = [self._draw(picture) for picture in inputs.pictures]
        answers = tuple(self._answer(question) for question in inputs.questions)
        return Outcome(self._clock() - start, answers, len(pixels))

    def _draw(self, picture: PictureInputs) -> torch.Tensor:
        """Return `[height, width, 3]` in 0..255."""
        torch.manual_seed(picture.seed)
        token_ids = torch.tensor([picture.token_ids])
        codes = self._model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            generation_mode="image",
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            guidance_scale=GUIDANCE,
        )
        pixels = self._model.decode_image_tokens(codes)[0]
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def _answer(self, question: QuestionInputs) -> tuple[int, ...]:
        token_ids = torch.tensor([question.token_ids])
        output = self._model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            pixel_values=torch.from_numpy(question.pixels_CHW)[None],
            do_sample=False,
            min_new_tokens=question.num_tokens,
            max_new_tokens=question.num_tokens,
        )
        return tuple(output[0, token_ids.shape[1] :].tolist())


class EngineSide:
    """Our engine: everything is submitted at once and shares its steps."""

    def __init__(self, directory: Path, *, builder: InputBuilder, clock: Clock) -> None:
        self._clock = clock
        self._model = load_model(directory, device=torch.device("cpu"), dtype=torch.float32)
        self._tokenizer = builder.tokenizer

    def run(self, inputs: Inputs) -> Outcome:
        """Draw and answer everything in a fresh engine: no prefix is cached from a run before."""
        engine = Engine(self._model, self._tokenizer, EngineSettings())
        requests = _requests(inputs)
        events: list[Event] = []
        start = self._clock()
        for request in requests:
            engine.submit(request)
        while engine.has_work:
            events += engine.step()
        duration_s = self._clock() - start
        engine.close()
        return _outcome(inputs, events, duration_s)


def _requests(inputs: Inputs) -> list[Request]:
    pictures = [
        ImageRequest(
            id=f"picture-{index}",
            token_ids=picture.token_ids,
            uncond_token_ids=picture.uncond_token_ids,
            guidance=GUIDANCE,
            sampling=SamplingParams(seed=picture.seed),
        )
        for index, picture in enumerate(inputs.pictures)
    ]
    questions = [
        TextRequest(
            id=f"question-{index}",
            token_ids=question.token_ids,
            sampling=SamplingParams(seed=0, temperature=0.0),
            max_tokens=question.num_tokens,
            min_tokens=question.num_tokens,
            images=(_image(question),),
        )
        for index, question in enumerate(inputs.questions)
    ]
    return [*pictures, *questions]


def _image(question: QuestionInputs) -> ImageInput:
    digest = hashlib.sha256(question.pixels_CHW.tobytes()).digest()
    num_tokens = question.token_ids.count(question.token_ids[question.first])
    return ImageInput(digest, question.pixels_CHW, question.first, num_tokens)


def _outcome(inputs: Inputs, events: list[Event], duration_s: float) -> Outcome:
    """Sort the events; a request that did not finish as asked makes the measurement worthless."""
    failures = [event.error for event in events if isinstance(event, Failed)]
    if failures:
        raise failures[0]
    finished = [event for event in events if isinstance(event, Finished)]
    assert len(finished) == len(inputs.pictures) + len(inputs.questions), "a request got lost"
    answers: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, TextDelta):
            answers.setdefault(event.request_id, []).extend(t.token_id for t in event.tokens)
    return Outcome(
        duration_s,
        tuple(tuple(answers[f"question-{i}"]) for i in range(len(inputs.questions))),
        sum(event.pixels is not None for event in finished),
        tuple(event for event in events if isinstance(event, StepDone)),
    )
