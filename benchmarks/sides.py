"""What a side of the comparison is: something that draws and answers, and tells its seconds.

Owns the vocabulary: tasks, their names, how much of each is done. Knows no engine. Invariant: a
task has the same work on every side that has it; what a side cannot do it does not list.
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from benchmarks.inputs import InputBuilder, Inputs, PictureInputs, QuestionInputs
from benchmarks.workloads import FORTY_WORDS, Question, chats, pictures, scene, workloads

FIRST, STEP, FOUR_STEP = "first code", "image step", "four-image step"
PIXELS = "vq decoding"
QUESTION, AGAIN = "first word about an image", "first word of a second question"
ALONE, MIXED = "gap of 4 chats", "gap of 4 chats beside 4 images"
EIGHT = "8 images"
SHORT = (FIRST, PIXELS, QUESTION, AGAIN)
"""Names of tasks; workloads done from beginning to end have names of their own, of which `EIGHT` is
one. A step is a decode step of guided pictures at the mean context of a picture. `SHORT` are done
once a round, and the first time in a process costs more."""

NUM_TOGETHER = 4


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of each task is done in a round; the rest is extrapolated."""

    num_steps: int = 12
    answer_tokens: int = 26


@dataclass(frozen=True, slots=True)
class Work:
    """The inputs of all tasks. `long_picture` has a prompt so long that the measured steps lie
    around the mean context of a picture with the prompt of `pictures`."""

    pictures: tuple[PictureInputs, ...]
    long_picture: PictureInputs
    first_question: QuestionInputs
    second_question: QuestionInputs
    chats: tuple[QuestionInputs, ...]
    workloads: tuple[Inputs, ...]
    num_codes: int
    mean_context: int
    effort: Effort

    @classmethod
    def build(cls, builder: InputBuilder, effort: Effort, *, is_whole: bool) -> "Work":
        """All inputs for one checkpoint; workloads from beginning to end only if `is_whole`."""
        drawn = tuple(map(builder.picture, pictures(8)))
        num_codes = builder.config.vq.num_codes
        side_px = builder.config.vision.image_size
        image = scene(side_px, 0)
        whole = workloads(side_px, answer_tokens=effort.answer_tokens) if is_whole else ()
        first, second = (builder.question(Question(text, image, 1)) for text in FORTY_WORDS)
        mean_context = len(drawn[0].token_ids) + num_codes // 2
        return cls(
            pictures=drawn,
            long_picture=drawn[0].lengthened(mean_context - effort.num_steps // 2),
            first_question=first,
            second_question=second,
            chats=tuple(map(builder.question, chats(4, answer_tokens=effort.answer_tokens))),
            workloads=tuple(map(builder.build, whole)),
            num_codes=num_codes,
            mean_context=mean_context,
            effort=effort,
        )


Task = Callable[[], list[float]]
"""Does the work once and returns its seconds: one value, or one per step or token."""

Key = tuple[str, str]
"""Name of the engine, as reports spell it, and of the task."""


class SideFailed(RuntimeError):
    """A side of somebody else's has crashed; what the others measured is worth keeping."""


class Side(Protocol):
    """One loaded model, and one or more engines on top of it."""

    def tasks(self) -> Mapping[Key, Task]:
        """The parts a picture and an answer consist of, in the order in which to do them."""

    def whole_tasks(self) -> Mapping[Key, Task]:
        """The workloads from beginning to end, for models that need seconds for them."""

    def close(self) -> None:
        """Give back the memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A side that can be loaded when its turn comes."""

    name: str
    open: Callable[[], Side]


def release() -> None:
    """Return freed memory to the system before the next model is loaded."""
    gc.collect()
    try:
        import ctypes

        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass
