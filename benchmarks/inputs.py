"""What every side of a comparison is given: the same token ids and the same pixels.

Owns the way from prompts and images to ids and pixels, once for all sides; knows no engine.
Invariant: two sides that get the same `Inputs` have the same work. Preprocessing and tokenisation
happen here, outside every clock.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.workloads import Picture, Question, Workload
from janus_core.config import read_config
from janus_core.image_processor import ImageProcessor
from janus_core.prompt import Message, PromptBuilder
from janus_core.tokenizer import Tokenizer

GUIDANCE = 5.0


@dataclass(frozen=True, slots=True)
class PictureInputs:
    """The ids of a picture's two sequences."""

    token_ids: tuple[int, ...]
    uncond_token_ids: tuple[int, ...]
    seed: int

    def lengthened(self, num_tokens: int) -> "PictureInputs":
        """The same prompt with its inner ids repeated up to `num_tokens`; both sequences keep their
        first and last ids, which have meanings. Not shorter than it was."""
        return PictureInputs(
            _lengthened(self.token_ids, num_tokens),
            _lengthened(self.uncond_token_ids, num_tokens),
            self.seed,
        )


@dataclass(frozen=True, slots=True)
class QuestionInputs:
    """The ids of a question, its pixels and where they go; no pixels for a question without an
    image, and `first` is 0 then."""

    token_ids: tuple[int, ...]
    pixels_CHW: npt.NDArray[np.float32] | None
    first: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """A workload as all sides receive it."""

    name: str
    pictures: tuple[PictureInputs, ...]
    questions: tuple[QuestionInputs, ...]


class InputBuilder:
    """Makes ids and pixels once, for all sides."""

    def __init__(self, directory: Path) -> None:
        self.config = read_config(directory)
        self.tokenizer = Tokenizer.load(directory)
        self._prompts = PromptBuilder.load(directory, tokenizer=self.tokenizer, config=self.config)
        self._processor = ImageProcessor.load(directory)

    def build(self, workload: Workload) -> Inputs:
        """The workload as ids and pixels."""
        pictures = tuple(self.picture(picture) for picture in workload.pictures)
        questions = tuple(self.question(question) for question in workload.questions)
        return Inputs(workload.name, pictures, questions)

    def picture(self, picture: Picture) -> PictureInputs:
        """The ids of a picture, guided."""
        prompt = self._prompts.generation(picture.prompt)
        assert prompt.uncond_token_ids is not None
        return PictureInputs(prompt.token_ids, prompt.uncond_token_ids, picture.seed)

    def question(self, question: Question) -> QuestionInputs:
        """The ids of a question, and the pixels of its image if it has one."""
        if question.image is None:
            prompt = self._prompts.understanding((Message("user", (question.text,)),))
            return QuestionInputs(prompt.token_ids, None, 0, question.num_tokens)
        prompt = self._prompts.understanding((Message("user", (question.image, question.text)),))
        ((first, image),) = prompt.images
        pixels_CHW = self._processor.preprocess(image)
        return QuestionInputs(prompt.token_ids, pixels_CHW, first, question.num_tokens)


def _lengthened(token_ids: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
    inner = itertools.cycle(token_ids[1:-1])
    room = max(num_tokens, len(token_ids)) - 2
    return (token_ids[0], *itertools.islice(inner, room), token_ids[-1])
