"""Is the engine dead, or a step hung? Looks every half second and says so.

Owns the age of the step at hand and the decision to give up; knows no HTTP and no process.
Invariant: only time in which this process itself was running counts, so that neither a stopped
process (SIGSTOP, a paused container, a laptop that slept) nor a jump of the clock looks like a
hang; and a busy engine never does, because each of its passes is a new beat.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)

WATCH_S = 0.5
"""Between two looks."""

MAX_COUNTED_S = 2 * WATCH_S
"""What may count between two looks: after more, the process itself was held up."""

LINGER_S = 2.0
"""After the engine has died: for clients to read their errors and for probes to see why."""


class Engine(Protocol):
    """What is watched."""

    @property
    def healthy(self) -> bool:
        """Whether its thread runs."""

    @property
    def beat_s(self) -> float | None:
        """When the pass at hand began; None between steps."""


class Watchdog:
    """A step older than `max_step_s` is hung: `on_hung` is called at every look. It has
    `watchdog_s` more to come back, a dead engine's clients less; then `on_failure` is called, once,
    with the reason. Never if `watchdog_s` is 0."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_step_s: float,
        watchdog_s: float,
        on_hung: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._max_step_s = max_step_s
        self._watchdog_s = watchdog_s
        self._on_hung = on_hung
        self._on_failure = on_failure
        self._beat_s: float | None = None
        self._seen_s = 0.0
        self._dead_s = 0.0
        self._has_failed = False
        self.age_s = 0.0

    @property
    def is_hung(self) -> bool:
        """Whether the step at hand, the one of the last look, takes longer than any should."""
        return self.age_s > self._max_step_s and self._engine.beat_s == self._beat_s

    async def run(self) -> None:
        """Look until cancelled."""
        self._seen_s = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            self.look(time.monotonic())

    def look(self, now_s: float) -> None:
        """One look, at `now_s` on the monotonic clock."""
        passed_s = min(max(0.0, now_s - self._seen_s), MAX_COUNTED_S)
        self._seen_s = now_s
        beat_s = self._engine.beat_s
        self.age_s = self.age_s + passed_s if beat_s is not None and beat_s == self._beat_s else 0.0
        self._beat_s = beat_s
        if not self._engine.healthy:
            self._dead_s += passed_s
            if self._dead_s >= min(LINGER_S, self._watchdog_s):
                self._fail("The engine has failed.")
        elif self.is_hung:
            self._on_hung()
            if self.age_s >= self._max_step_s + self._watchdog_s:
                self._fail(f"A step has been running for {self.age_s:.0f} s.")

    def _fail(self, reason: str) -> None:
        if self._watchdog_s and not self._has_failed:
            self._has_failed = True
            self._on_failure(reason)
