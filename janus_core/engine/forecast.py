"""When pictures will be done, and when whoever comes would begin.

Owns the calculation, from an `Outlook` of one moment and the durations learnt so far, and the
newest outlook (`Horizon`); knows no slots and no tensors. A picture needs a known number of codes,
one a step, and pictures are taken in order, so what remains is a sum. It assumes that text stays as
it is, which nobody knows. Invariant: an `Outlook` is immutable, so any thread may calculate with
it.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from janus_core.engine.pace import Pace
from janus_core.engine.queue_pace import QueuePace
from janus_core.engine.request import Request, TextRequest
from janus_core.engine.step_model import StepLoad, StepModel

REFRESH_S = 0.1
"""Age of an outlook at which it is replaced, if no picture came or went before."""

EXTRA_PLACES = 8
"""Places calculated behind the end of the queue, beyond those drawn at once."""

NUM_RENDERED = 9
"""Pictures whose decoding time is remembered; the median counts."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture that is not done: `num_left` codes to draw and `num_prompt` prompt tokens to
    compute, by `num_rows` sequences of `context` positions so far."""

    request_id: str
    num_rows: int
    num_left: int
    num_prompt: int
    context: int

    @property
    def load(self) -> StepLoad:
        """Its part of a step, halfway through."""
        context = self.num_rows * (self.context + self.num_prompt + self.num_left // 2)
        return StepLoad(rows=self.num_rows, context=context, codes=1)


@dataclass(frozen=True, slots=True)
class Outlook:
    """The engine at `time_s`: `answers` are decoded in every step, `drawings` are in order, of
    which the first `num_running` have slots and `num_at_once` may have them together.

    `num_rendering` pictures wait for their pixels, which take `render_s` each.
    """

    time_s: float = 0.0
    answers: StepLoad = StepLoad()  # noqa: RUF009 - immutable
    drawings: tuple[Drawing, ...] = ()
    num_running: int = 0
    num_at_once: int = 1
    num_rendering: int = 0
    render_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """`position` counts the pictures that start sooner and have not started; 0 for the next, and
    for those that have. `wait_s` until it starts, `remaining_s` until its pixels are there."""

    position: int
    wait_s: float
    remaining_s: float


def forecast(
    outlook: Outlook,
    pace: Pace,
    model: StepModel,
    *,
    more: Sequence[Drawing] = (),
    num_ahead: int | None = None,
) -> dict[str, Estimate]:
    """An estimate for every drawing of the outlook and for `more` behind the first `num_ahead` that
    wait, by default behind all; empty before the first step was measured."""
    if not model.is_measured:
        return {}
    place = len(outlook.drawings) if num_ahead is None else outlook.num_running + num_ahead
    queue = [*outlook.drawings[:place], *more, *outlook.drawings[place:]]
    answers = outlook.answers
    active: list[list[int]] = []  # index in `queue`, codes left
    started_s: dict[int, float] = {}
    done_s: dict[int, float] = {}
    now_s, rendered_s = 0.0, outlook.num_rendering * outlook.render_s
    following = 0
    while active or following < len(queue):
        load = sum((queue[index].load for index, _ in active), start=answers)
        # Pictures that are paused beside answers count as waiting: they are taken in order too.
        while following < len(queue) and len(active) < outlook.num_at_once:
            whole = load + queue[following].load
            if active and not pace.allows(answers, whole):
                break
            started_s[following] = 0.0 if following < outlook.num_running else now_s
            now_s += _prompt_s(queue[following], load, model)
            active.append([following, max(1, queue[following].num_left)])
            load = whole
            following += 1
        num_steps = min(left for _, left in active)
        now_s += num_steps * pace.drawing_step_s(answers, load)
        for entry in active:
            entry[1] -= num_steps
            if entry[1] == 0:
                rendered_s = max(rendered_s, now_s) + outlook.render_s
                done_s[entry[0]] = rendered_s
        active = [entry for entry in active if entry[1]]
    return {
        drawing.request_id: Estimate(
            max(0, index - outlook.num_running), started_s[index], done_s[index]
        )
        for index, drawing in enumerate(queue)
    }


def _prompt_s(drawing: Drawing, load: StepLoad, model: StepModel) -> float:
    """By how much its prompt makes steps of `load` longer."""
    if not drawing.num_prompt:
        return 0.0
    prompt = StepLoad(prefill_tokens=drawing.num_prompt, context=drawing.num_prompt)
    return model.step_s(load + prompt) - model.step_s(load)


class Horizon:
    """The newest outlook, and what follows from it. `look`, `rendered` and notes of `pace_of_text`
    belong to the engine's thread; the others are thread-safe. `room_for_images(pair, positions)`
    says how many pictures of `pair` sequences may have slots."""

    def __init__(
        self,
        pace: Pace,
        model: StepModel,
        *,
        num_codes: int,
        room_for_images: Callable[[int, int], int],
    ) -> None:
        self._pace = pace
        self._model = model
        self._num_codes = num_codes
        self._room_for_images = room_for_images
        self._outlook = Outlook()
        self._cached: tuple[Outlook, dict[str, Estimate]] = (self._outlook, {})
        self._cached_places: tuple[Outlook | None, list[Estimate]] = (None, [])
        self.pace_of_text = QueuePace()
        self._num_images = 0
        self._render_s: deque[float] = deque(maxlen=NUM_RENDERED)

    def rendered(self, duration_s: float) -> None:
        """The codes of a picture were decoded."""
        self._render_s.append(duration_s)

    def look(self, outlook: Callable[[float], Outlook], *, num_images: int) -> None:
        """Ask for a new outlook, of a time in seconds, if the old one has aged or the number of
        pictures that are not done has changed."""
        now_s = time.monotonic()
        changed = num_images != self._num_images
        if not changed and (not num_images or now_s - self._outlook.time_s < REFRESH_S):
            return
        self._num_images = num_images
        known = sorted(self._render_s)
        render_s = known[len(known) // 2] if known else 0.0
        self._outlook = replace(outlook(now_s), render_s=render_s)

    def of(self, request_id: str) -> Estimate | None:
        """The estimate for a picture that is not drawn yet; None for any other request."""
        outlook, estimates = self._cached
        if outlook is not self._outlook:
            outlook = self._outlook
            estimates = forecast(outlook, self._pace, self._model)
            self._cached = (outlook, estimates)
        found = estimates.get(request_id)
        return None if found is None else _aged(found, outlook)

    def next_start_s(self) -> float | None:
        """Seconds until the first of the waiting pictures begins; None if none waits, and before
        any step was measured."""
        outlook = self._outlook
        if len(outlook.drawings) <= outlook.num_running:
            return None
        found = self.of(outlook.drawings[outlook.num_running].request_id)
        return None if found is None else found.wait_s

    def of_place(self, num_ahead: int, *, is_image: bool) -> Estimate | None:
        """For a request that came now, behind `num_ahead` of its kind that wait: forecast for
        pictures; for text at the pace at which the queue moves, and done no sooner than begun,
        because nobody knows its length. None before anything was measured, and for text while there
        is no queue: what was accepted in this step may all begin with the next one."""
        if is_image:
            return self._image_place(num_ahead)
        pace = self.pace_of_text
        interval_s = pace.interval_s
        if interval_s is None or not pace.has_queue:
            return None
        return Estimate(num_ahead, num_ahead * interval_s, num_ahead * interval_s)

    def of_request(
        self, request: Request, *, num_images: int, num_ahead: int | None
    ) -> Estimate | None:
        """As `of_more`, for pictures such as this one; None for text."""
        if isinstance(request, TextRequest):
            return None
        return self.of_more(
            num_images,
            num_rows=1 if request.uncond_token_ids is None else 2,
            num_prompt=len(request.token_ids),
            num_codes=request.forced_codes.count(None) if request.forced_codes else None,
            num_ahead=num_ahead,
        )

    def of_more(
        self,
        num_images: int,
        *,
        num_rows: int = 2,
        num_prompt: int = 0,
        num_codes: int | None = None,
        num_ahead: int | None = None,
    ) -> Estimate | None:
        """The estimate for the last of `num_images` pictures that came now, each with `num_codes`
        codes to draw, by default all, behind the first `num_ahead` that wait, by default all; None
        before any step was measured."""
        num_left = self._num_codes if num_codes is None else num_codes
        more = [
            Drawing(f"\0{index}", num_rows, num_left, num_prompt, context=0)
            for index in range(num_images)
        ]
        outlook = self._with_room(self._outlook, more[0])
        estimates = forecast(outlook, self._pace, self._model, more=more, num_ahead=num_ahead)
        found = estimates.get(f"\0{num_images - 1}")
        return None if found is None else _aged(found, outlook)

    def _image_place(self, num_ahead: int) -> Estimate | None:
        """Calculated once for an outlook, because most that ask are refused."""
        outlook = self._outlook
        known, places = self._cached_places
        if outlook is not known:
            places = self._places(outlook)
            if not places:
                return None
            self._cached_places = (outlook, places)
        found = places[min(num_ahead, len(places) - 1)]
        if num_ahead >= len(places):
            # More came since the outlook than it foresaw: as fast as at its end.
            each_s = (found.wait_s - places[-1 - EXTRA_PLACES].wait_s) / EXTRA_PLACES
            more_s = (num_ahead - len(places) + 1) * each_s
            found = Estimate(num_ahead, found.wait_s + more_s, found.remaining_s + more_s)
        return _aged(found, outlook)

    def _places(self, outlook: Outlook) -> list[Estimate]:
        """For a picture that is behind none of those that wait, behind one, and so on."""
        waiting = outlook.drawings[outlook.num_running :]
        num_prompt = waiting[-1].num_prompt if waiting else 0
        one = Drawing("", num_rows=2, num_left=self._num_codes, num_prompt=num_prompt, context=0)
        outlook = self._with_room(outlook, one)
        num_more = outlook.num_at_once + EXTRA_PLACES + 1
        more = [replace(one, request_id=f"\0{index}") for index in range(num_more)]
        found = forecast(outlook, self._pace, self._model, more=more)
        # Whoever takes the place of one that waits begins, and is done, when that one would have.
        return [found[drawing.request_id] for drawing in (*waiting, *more) if found]

    def _with_room(self, outlook: Outlook, like: Drawing) -> Outlook:
        """An outlook without drawings does not say how many there may be at once."""
        if outlook.drawings:
            return outlook
        context = like.num_prompt + self._num_codes // 2
        by_pace = self._pace.max_images(pair=like.num_rows, context=context)
        by_room = self._room_for_images(like.num_rows, like.num_prompt + self._num_codes)
        return replace(outlook, num_at_once=min(by_pace, by_room))


def _aged(estimate: Estimate, outlook: Outlook) -> Estimate:
    """The estimate as of now. A picture behind nobody has not waited since an empty outlook."""
    age_s = time.monotonic() - outlook.time_s if outlook.drawings else 0.0
    return replace(
        estimate,
        wait_s=max(0.0, estimate.wait_s - age_s),
        remaining_s=max(0.0, estimate.remaining_s - age_s),
    )
