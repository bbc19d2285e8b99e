"""How long nobody has found room in the queue.

Owns the two runs of refusals, of answers and of pictures; knows neither the queue nor the probe
that asks. Invariant: full means that a request sent now would be refused, whatever it asks for, and
that this has gone on for a while: a burst that the queue was made for is no reason to send clients
away.
"""

import math
import time
from collections.abc import Callable
from typing import Protocol

PAUSE_S = 30.0
"""A run of refusals ends after so long without one. Not at the first request that is taken: a
server that gets five times what it can do takes every fifth, and is full all the same. Longer than
probes are apart, which count as requests: where they have sent the clients away, nobody else asks.
"""


class HasRoom(Protocol):
    """Whether a request, for a picture or not, would be taken now."""

    def __call__(self, *, is_image: bool) -> bool: ...


class Crowding:
    """Full after `limit_s` of refusals, if there is no room; 0 is never."""

    def __init__(
        self,
        has_room: HasRoom,
        *,
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._has_room = has_room
        self._limit_s = limit_s
        self._clock = clock
        self._first_s = {False: math.inf, True: math.inf}
        self._last_s = {False: -math.inf, True: -math.inf}

    def refused(self, *, is_image: bool) -> None:
        """A request, for a picture or not, found no room."""
        now_s = self._clock()
        if now_s - self._last_s[is_image] > PAUSE_S:
            self._first_s[is_image] = now_s
        self._last_s[is_image] = now_s

    def is_full(self) -> bool:
        """Whether there is no room, and has been none for too long."""
        if not self._limit_s:
            return False
        is_open = False
        for is_image in (False, True):
            if self._has_room(is_image=is_image):
                is_open = True
            else:
                self.refused(is_image=is_image)
        since_s = max(self._first_s.values())
        return not is_open and self._clock() - since_s >= self._limit_s
