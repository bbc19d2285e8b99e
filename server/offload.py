"""Threads for what would block the event loop: decoding and encoding images, tokenising.

Owns the pool and the bound on its queue; knows nothing of the work. Few threads on purpose: on a
CPU they compete with the engine's, behind which they step back. Invariant: no more than
`max_pending` new requests ever wait here, and work for a request that the engine has taken is never
refused.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from janus_core.errors import QueueFullError
from janus_core.threads import lower_priority

P = ParamSpec("P")
T = TypeVar("T")

NICENESS = 5
"""Behind the compute threads, which all wait for the one that is held up, but before the rendering
of pictures: requests begin here."""


class Offload:
    """Runs functions in a few threads of its own."""

    def __init__(self, *, num_threads: int, max_pending: int) -> None:
        self._pool = ThreadPoolExecutor(
            num_threads,
            thread_name_prefix="offload",
            initializer=lower_priority,
            initargs=(NICENESS,),
        )
        self._max_pending = max_pending
        self._num_pending = 0

    async def admit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for a request that can still be refused: QueueFullError if too many wait."""
        if self._num_pending >= self._max_pending:
            raise QueueFullError(
                f"{self._num_pending} requests are being prepared already.", retry_after_s=1.0
            )
        self._num_pending += 1
        try:
            return await self.run(function, *args, **kwargs)
        finally:
            self._num_pending -= 1

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `function` in a thread. A job that has not begun when its waiter is cancelled never
        begins."""

        def job() -> T:
            try:
                return function(*args, **kwargs)
            except Exception:
                raise
            except BaseException as panic:
                # What a panic in Rust becomes (a tokenizer's, say) is no Exception, and would slip
                # through every handler.
                raise RuntimeError("An extension module has panicked.") from panic

        return await asyncio.get_running_loop().run_in_executor(self._pool, job)

    def close(self) -> None:
        """Drop what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
