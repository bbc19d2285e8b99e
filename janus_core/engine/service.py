"""The engine's thread: commands in through a queue, events out once per step.

Owns the thread and the order of commands; knows neither HTTP nor what an answer means. Invariant:
after the thread has died or was stopped, every request that was accepted has had its terminal
event, and none is accepted any more.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NoReturn, Protocol

from janus_core.engine.constraint import Matcher
from janus_core.engine.engine import Engine
from janus_core.engine.events import Event, Failed, Finished
from janus_core.engine.forecast import Estimate
from janus_core.engine.request import ImageRequest, Request
from janus_core.engine.stats import EngineStats
from janus_core.engine.waiting_room import WaitingRoom, num_bytes_of
from janus_core.errors import (
    ASLEEP_RETRY_S,
    RESTART_RETRY_S,
    AsleepError,
    DrainingError,
    EngineDeadError,
    JanusError,
    QueueFullError,
    told_retry_s,
)

RATE_DECAY = 0.9
"""Weight of the past in the running mean of the time between the ends of two requests."""

logger = logging.getLogger(__name__)

Sink = Callable[[Sequence[Event]], None]
"""Takes the events of a step; called from the engine's thread. Must neither block nor raise."""


class OnRefused(Protocol):
    """Hears that a request, for a picture or not, was refused for want of room."""

    def __call__(self, *, is_image: bool) -> None: ...


class EngineService:
    """Runs `engine` in a thread of its own. All methods are thread-safe."""

    def __init__(self, engine: Engine, sink: Sink) -> None:
        self._engine = engine
        self._sink = sink
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Guards everything below; notified by whatever may end a wait.
        self._changed = threading.Condition()
        self._submitted: deque[tuple[Request, Matcher | None]] = deque()
        self._cancelled: deque[str] = deque()
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._live: set[str] = set()
        self._waiting = WaitingRoom(engine.settings)
        self._error: JanusError | None = None
        self._is_draining = False
        self._is_asleep = False
        self._is_stopping = False
        self._is_woken = False
        self._step_started_s: float | None = None
        self._ended_s = time.monotonic()
        self._mean_interval_s = 1.0
        self.on_refused: OnRefused = _ignore
        """Called when somebody who has nothing here would have found no room, either. Under the
        lock."""
        engine.on_rendered = self._wake
        engine.on_started = self._leave_queue

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def submit(self, request: Request, *, patience_s: float = math.inf) -> None:
        """Queue a request; its events go to the sink. Whoever sent it waits `patience_s` for it to
        begin.

        Raises at once what makes it impossible: ContextLengthError and ParameterError for good,
        QueueFullError and DrainingError for now, EngineDeadError if nothing will ever be answered.
        """
        matcher = self._engine.validate(request)
        is_image = isinstance(request, ImageRequest)
        with self._changed:
            self._check_place(request.tenant, is_image=is_image, num_bytes=num_bytes_of(request))
            self._check_wait(request.tenant, is_image=is_image, patience_s=patience_s)
            assert request.id not in self._live, f"request {request.id} is live already"
            self._live.add(request.id)
            self._waiting.enter(request)
            self._submitted.append((request, matcher))
            self._changed.notify_all()

    def check_room(self, tenant: str, *, draws: bool = False, patience_s: float = math.inf) -> None:
        """Raise what `submit` would for whatever this tenant sends, before anybody has looked at
        it: refusing must cost next to nothing. `draws` says that it is a picture."""
        with self._changed:
            self._check_place(tenant, is_image=draws, num_bytes=0)
            if draws:
                self._check_wait(tenant, is_image=True, patience_s=patience_s)

    def has_room(self, *, is_image: bool) -> bool:
        """Whether somebody who has nothing here may wait now, for a picture or an answer."""
        with self._changed:
            return self._has_room(is_image=is_image)

    def cancel(self, request_id: str) -> None:
        """End a request before the next step; without effect if it has ended."""
        with self._changed:
            self._cancelled.append(request_id)
            self._changed.notify_all()

    def call(self, function: Callable[[], None]) -> Future[None]:
        """Call `function` in the engine's thread between two steps; what it raises is the
        future's. It must not leave the engine in a state it cannot go on from."""
        done: Future[None] = Future()
        with self._changed:
            if self._error is not None:
                raise self._error
            self._calls.append((function, done))
            self._changed.notify_all()
        return done

    def begin_sleep(self) -> None:
        """Take no new work until `end_sleep`; what is at hand goes on."""
        with self._changed:
            self._is_asleep = True

    def end_sleep(self) -> None:
        """Take work again."""
        with self._changed:
            self._is_asleep = False

    def drain(self, timeout_s: float) -> bool:
        """Take no new work and wait for the requests at hand; whether all of them ended in time."""
        with self._changed:
            self._is_draining = True
            return self._changed.wait_for(lambda: not self._live, timeout_s)

    def stop(self) -> None:
        """End the thread after the step at hand; requests still alive fail with DrainingError."""
        with self._changed:
            self._is_draining = self._is_stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._engine.close()

    @property
    def healthy(self) -> bool:
        """Whether the thread runs, so that requests will be answered."""
        return self.is_alive and self._error is None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, if only to its end."""
        return self._thread.is_alive()

    @property
    def beat_s(self) -> float | None:
        """When the oldest of the passes at hand began, the step's or the renderer's, on the
        monotonic clock; None if there is none. A step that is repeated in parts beats at each of
        them, a hung device no more."""
        started_s = self._step_started_s
        step_s = None if started_s is None else max(started_s, self._engine.beat_s)
        beats_s = [each for each in (step_s, self._engine.render_beat_s) if each is not None]
        return min(beats_s, default=None)

    @property
    def is_asleep(self) -> bool:
        """Whether new work is refused because the engine sleeps, or is about to."""
        return self._is_asleep

    @property
    def num_live(self) -> int:
        """Requests accepted and not yet ended."""
        return len(self._live)

    def stats(self) -> EngineStats:
        """The engine's numbers of this moment."""
        return self._engine.stats()

    def estimate(self, request: Request | str, *, num_images: int = 1) -> Estimate | None:
        """When a picture will be there: one that is live (by its id), or the last of `num_images`
        submitted now. None for text, for unknown ids, and before the first step was measured."""
        if isinstance(request, str):
            return self._engine.estimate(request)
        with self._changed:
            num_ahead = self._waiting.num_ahead(request.tenant, is_image=True)
        return self._engine.estimate(request, num_images=num_images, num_ahead=num_ahead)

    @property
    def retry_after_s(self) -> float:
        """When to come back after a refusal."""
        return self._place_free_s()

    # ---- the engine's thread --------------------------------------------------------------------

    def _run(self) -> None:
        error: JanusError = EngineDeadError("The engine has failed; nothing more will be answered.")
        try:
            self._engine.bind_thread()
            while self._obey():
                self._answer_calls()
                self._step_started_s = time.monotonic()
                events = self._engine.step()
                self._step_started_s = None
                self._emit(events)
            error = DrainingError(
                "The server was shut down before the request was done.",
                retry_after_s=RESTART_RETRY_S,
            )
        except Exception:
            logger.critical("The engine has failed.", exc_info=True)
        finally:
            self._die(error)

    def _obey(self) -> bool:
        """Wait until there is something to do and carry out the commands; False to stop."""
        with self._changed:
            self._changed.wait_for(self._has_reason_to_step)
            self._is_woken = False
            while self._submitted:
                self._engine.accept(*self._submitted.popleft())
            while self._cancelled:
                self._engine.cancel(self._cancelled.popleft())
            return not self._is_stopping

    def _answer_calls(self) -> None:
        """Outside of the lock: they may take seconds, and nobody else should wait for them."""
        while self._calls:
            function, done = self._calls.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                function()
            except Exception as error:  # the caller's to see: the engine goes on
                done.set_exception(error)
            else:
                done.set_result(None)

    def _has_reason_to_step(self) -> bool:
        commands = (
            *(self._submitted, self._cancelled, self._calls),
            *(self._is_stopping, self._is_woken),
        )
        return any(commands) or (self._engine.has_work and not self._engine.is_rendering_only)

    def _emit(self, events: Sequence[Event]) -> None:
        """Hand the events over, then let go of the requests that have ended."""
        if not events:
            return
        self._sink(events)
        ended = [event.request_id for event in events if isinstance(event, Finished | Failed)]
        if not ended:
            return
        self._leave_queue(ended)
        with self._changed:
            self._live.difference_update(ended)
            now_s = time.monotonic()
            interval_s = (now_s - self._ended_s) / len(ended)
            self._ended_s = now_s
            self._mean_interval_s += (1.0 - RATE_DECAY) * (interval_s - self._mean_interval_s)
            self._changed.notify_all()

    def _leave_queue(self, request_ids: Sequence[str]) -> None:
        """A place is free once its request has slots: its first step may take seconds."""
        if not request_ids:
            return
        with self._changed:
            for request_id in request_ids:
                self._waiting.leave(request_id)

    def _die(self, error: JanusError) -> None:
        """Fail whatever is alive, without the engine's help: it may be what failed."""
        with self._changed:
            self._error = error
            ended = sorted(self._live)
            calls, self._calls = self._calls, deque()
        for _, done in calls:
            done.set_exception(error)
        self._emit([Failed(request_id, error) for request_id in ended])

    def _wake(self) -> None:
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    # ---- whether one more may wait; all with the lock held ---------------------------------------

    def _check_place(self, tenant: str, *, is_image: bool, num_bytes: int) -> None:
        if self._error is not None:
            raise self._error
        if self._is_draining:
            raise DrainingError(
                "The server is shutting down and takes no new work.",
                retry_after_s=told_retry_s(self._mean_interval_s),
            )
        if self._is_asleep:
            raise AsleepError("The server is asleep.", retry_after_s=ASLEEP_RETRY_S)
        refusal = self._waiting.refusal(tenant, is_image=is_image, num_bytes=num_bytes)
        if refusal is not None:
            self._refuse(refusal, is_image=is_image, retry_after_s=self._place_free_s())

    def _check_wait(self, tenant: str, *, is_image: bool, patience_s: float) -> None:
        """Refuse what would begin too late, or be done too late for whoever sent it: drawing what
        nobody waits for would make others late, too."""
        num_ahead = self._waiting.num_ahead(tenant, is_image=is_image)
        place = self._engine.estimate_place(is_image=is_image, num_ahead=num_ahead)
        if place is None:
            return
        what = "picture" if is_image else "answer"
        limit_s = min(self._engine.settings.max_queue_s, patience_s)
        if place.wait_s > limit_s:
            self._refuse(
                f"The {what} would begin in about {place.wait_s:.1f} s, but may wait for "
                f"{limit_s:.1f} s at most.",
                is_image=is_image,
                retry_after_s=told_retry_s(place.wait_s - limit_s),
            )
        # Who begins at once is never refused by an estimate: nothing would ever correct it.
        if place.wait_s > 0.0 and place.remaining_s > patience_s:
            self._refuse(
                f"The {what} would be done in about {place.remaining_s:.1f} s, but its deadline is "
                f"in {patience_s:.1f} s.",
                is_image=is_image,
                retry_after_s=told_retry_s(place.remaining_s - patience_s),
            )

    def _refuse(self, message: str, *, is_image: bool, retry_after_s: float) -> NoReturn:
        if not self._has_room(is_image=is_image):
            self.on_refused(is_image=is_image)
        raise QueueFullError(message, retry_after_s=retry_after_s)

    def _has_room(self, *, is_image: bool) -> bool:
        """By places, bytes and time, for a request without a deadline of its own."""
        nobody = ""
        if self._waiting.refusal(nobody, is_image=is_image) is not None:
            return False
        num_ahead = self._waiting.num_ahead(nobody, is_image=is_image)
        place = self._engine.estimate_place(is_image=is_image, num_ahead=num_ahead)
        return place is None or place.wait_s <= self._engine.settings.max_queue_s

    def _place_free_s(self) -> float:
        """When a place in the queue becomes free: pictures leave it when it is forecast, answers at
        the pace at which they did so far."""
        next_s = self._engine.next_start_s
        if next_s is None or self._engine.has_waiting_text:
            place = self._engine.estimate_place(is_image=False, num_ahead=1)
            text_s = self._mean_interval_s if place is None else place.wait_s
            next_s = text_s if next_s is None else min(next_s, text_s)
        return told_retry_s(next_s)


def _ignore(*, is_image: bool) -> None:
    """Nobody wants to know."""
