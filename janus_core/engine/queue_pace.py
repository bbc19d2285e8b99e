"""How fast requests leave a queue while there is one.

Owns two numbers, the time somebody waited and how many began meanwhile, which fade; knows no
request. Invariant: times without a queue count for nothing, because then whoever comes sets the
pace.
"""

HALF_LIFE_S = 30.0
"""After so much time with a queue, what was seen before counts half."""


class QueuePace:
    """Call `note` after every plan, from one thread; `interval_s` from any."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._waited_s = 0.0
        self._num_started = 0.0

    def note(self, now_s: float, num_started: int, *, is_waiting: bool) -> None:
        """So many began just now, and others wait on or do not."""
        if self._since_s is not None:
            passed_s = now_s - self._since_s
            keep = 0.5 ** (passed_s / HALF_LIFE_S)
            self._waited_s = keep * self._waited_s + passed_s
            self._num_started = keep * self._num_started + num_started
        self._since_s = now_s if is_waiting else None

    @property
    def has_queue(self) -> bool:
        """Whether somebody waits. If not, whoever comes begins at once."""
        return self._since_s is not None

    @property
    def interval_s(self) -> float | None:
        """Mean time between two that begin; None before anybody waited."""
        if not self._waited_s:
            return None
        return self._waited_s / max(1.0, self._num_started)
