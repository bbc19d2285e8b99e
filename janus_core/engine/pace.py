"""How much work a step may take up beside the answers that are being written.

Owns the promises (settings) and the account between answers and pictures; knows modelled durations,
neither requests nor slots. Invariants: while nobody waits for text, pictures are not held back;
while somebody does, pictures that want to go on get at least their share of the time, however many
questions come.

A step is filled in this order, and each line may only use what the lines above left of its limit:

    answers         one token each, always
    their prompts   until the step takes `chat_slowdown` times as long as the answers alone,
                    or `token_time_s`, whichever is longer
    pictures        until it takes `chat_slowdown` times as long as the answers alone, or as
                    much longer as pictures are owed
"""

from janus_core.engine.settings import EngineSettings
from janus_core.engine.step_model import StepLoad, StepModel

IMAGE_SLOWDOWN = 2.0
"""Pictures drawn together may always take so many times as long as one alone, even beyond
`image_time_s`: one row more costs far less than a step of its own."""

OWED_STEPS = 1.0
"""Most that pictures are owed, in steps without pictures; with so much, they go on whatever it
costs."""


class Pace:
    """`num_codes` is the number of steps a picture takes."""

    def __init__(self, settings: EngineSettings, model: StepModel, *, num_codes: int) -> None:
        self._settings = settings
        self._model = model
        self._num_codes = num_codes
        self._owed_s = 0.0
        self._owed_limit_s = 0.0
        self._text_s = 0.0
        self._image_s = 0.0

    @property
    def text_seconds(self) -> float:
        """Modelled time given to text since the start."""
        return self._text_s

    @property
    def image_seconds(self) -> float:
        """Modelled time by which pictures made steps longer, and steps of pictures only."""
        return self._image_s

    def prompt_tokens(self, answers: StepLoad, *, most: int) -> int:
        """Prompt tokens, at most `most`, that may join `answers` in a step; without answers all."""
        if not answers.rows:
            return most
        if self._settings.prefill_tokens is not None:
            return min(most, self._settings.prefill_tokens)
        limit_s = max(self._slowed_s(answers), self._settings.token_time_s)
        # One at least: a prompt is never stopped by answers.
        return min(most, max(1, self._model.tokens_within(answers, limit_s)))

    def ceiling_s(self, answers: StepLoad, text: StepLoad) -> float:
        """How long pictures may make a step in which `answers` are decoded and `text` (answers and
        prompts) is computed in all."""
        if text.is_empty:
            return float("inf")
        base = answers if answers.rows else text
        return max(self._slowed_s(base), self._model.usual_s(text) + self._owed_s)

    @property
    def must_draw(self) -> bool:
        """Whether pictures were passed over for so long that one goes on whatever it costs."""
        return self._owed_s > 0.0 and self._owed_s >= self._owed_limit_s

    def fits(self, load: StepLoad, ceiling_s: float) -> bool:
        """Whether a step of `load` stays within `ceiling_s`."""
        return self._model.usual_s(load) <= ceiling_s

    def image_tokens(self, load: StepLoad, ceiling_s: float, *, most: int) -> int:
        """Prompt tokens of pictures that may join a step of `load`, at most `most`."""
        return min(most, self._model.tokens_within(load, ceiling_s))

    def settle(self, text: StepLoad, whole: StepLoad, *, images_want: bool) -> None:
        """Book a step: `text` of `whole` was for text. Pictures that wanted to go on are owed
        their share of it, less what they got."""
        whole_s = self._model.usual_s(whole)
        text_s = 0.0 if text.is_empty else self._model.usual_s(text)
        self._text_s += text_s
        self._image_s += whole_s - text_s
        if not images_want or text.is_empty:
            self._owed_s = 0.0
            return
        owed_s = self._owed_s + self._settings.image_share * whole_s - (whole_s - text_s)
        self._owed_s = min(max(owed_s, 0.0), OWED_STEPS * text_s)
        self._owed_limit_s = OWED_STEPS * text_s

    def max_images(self, *, pair: int, context: int) -> int:
        """How many pictures of `pair` sequences with a mean `context` may be drawn at once."""
        if self._settings.max_images is not None:
            return self._settings.max_images
        one_s = self._image_time_s(1, pair, context)
        limit_s = max(self._settings.image_time_s, IMAGE_SLOWDOWN * one_s)
        least_s = self._image_time_s(0, pair, context)
        each_s = one_s - least_s
        if each_s <= 0.0 or limit_s == float("inf"):
            return self._settings.max_sequences
        return max(1, min(self._settings.max_sequences, int((limit_s - least_s) / each_s)))

    def allows(self, answers: StepLoad, whole: StepLoad) -> bool:
        """Whether the pictures in `whole` may go on beside `answers` in every step."""
        return not answers.rows or self.fits(whole, self._slowed_s(answers))

    def drawing_step_s(self, answers: StepLoad, whole: StepLoad) -> float:
        """Mean time between two codes of the pictures in `whole`: the duration of a step, or of
        as many as pass until they get their share."""
        whole_s = self._model.step_s(whole)
        if self.allows(answers, whole):
            return whole_s
        share = self._settings.image_share
        text_s = self._model.step_s(answers)
        if share <= 0.0:
            return whole_s
        return max(whole_s, min((whole_s - text_s) / share, whole_s + text_s / share))

    def _image_time_s(self, num_images: int, pair: int, context: int) -> float:
        rows = num_images * pair
        load = StepLoad(rows=rows, context=rows * context, codes=num_images)
        return self._num_codes * self._model.step_s(load)

    def _slowed_s(self, load: StepLoad) -> float:
        return self._settings.chat_slowdown * self._model.usual_s(load)
