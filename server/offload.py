"""Threads for what would block the event loop: images, prompts, files, forms.

Owns the threads, whose turn it is and how many may wait; knows nothing of the work. Few threads on
purpose: on a CPU they compete with the engine's, behind which they step back. Invariants: tenants
take turns, one job each, so that nobody waits for more than one of every other tenant's; requests
that can still be refused never take more than `max_pending` places, but for a single one that is
larger, and those of one tenant never take all; and work for a request that the engine has taken is
never refused.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import ParamSpec, TypeVar

from janus_core.engine.waiting_room import exceeds_share
from janus_core.errors import QueueFullError
from janus_core.threads import lower_priority

P = ParamSpec("P")
T = TypeVar("T")

NICENESS = 5
"""Behind the compute threads, which all wait for the one that is held up, but before the rendering
of pictures: requests begin here."""


class Offload:
    """Runs functions in a few threads of its own. Belongs to one event loop."""

    def __init__(self, *, num_threads: int, max_pending: int) -> None:
        self._pool = ThreadPoolExecutor(
            num_threads,
            thread_name_prefix="offload",
            initializer=lower_priority,
            initargs=(NICENESS,),
        )
        self._num_idle = num_threads
        # Of the tenants with jobs that wait; whoever's turn is next is first.
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._max_pending = max_pending
        # Places by tenant.
        self._pending: Counter[str] = Counter()

    @contextmanager
    def places(self, tenant: str, num: int = 1) -> Iterator[None]:
        """Take places while the body runs, for a request that can still be refused.

        Raises QueueFullError if there are not so many, or not for this tenant.
        """
        self._check_room(tenant, num)
        self._pending[tenant] += num
        try:
            yield
        finally:
            self._pending[tenant] -= num

    async def admit(
        self, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, in a place of its own. Raises QueueFullError."""
        with self.places(tenant):
            return await self.run(tenant, function, *args, **kwargs)

    async def run(
        self, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await `function` in a thread, once it is its turn. A job that has not begun when its
        waiter is cancelled never begins."""

        def job() -> T:
            try:
                return function(*args, **kwargs)
            except Exception:
                raise
            except BaseException as panic:
                # What a panic in Rust becomes (a tokenizer's, say) is no Exception, and would slip
                # through every handler.
                raise RuntimeError("An extension module has panicked.") from panic

        loop = asyncio.get_running_loop()
        await self._turn(tenant)
        begun = self._pool.submit(job)
        # Not when its waiter is gone: the thread is busy until the job ends.
        begun.add_done_callback(lambda _: self._ended(loop))
        return await asyncio.wrap_future(begun)

    def close(self) -> None:
        """Drop what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for turn in [turn for line in self._lines.values() for turn in line]:
            turn.cancel()
        self._lines.clear()

    @property
    def _num_pending(self) -> int:
        return self._pending.total()

    def _check_room(self, tenant: str, num: int) -> None:
        taken, own = self._num_pending, self._pending[tenant]
        left = self._max_pending - taken - num
        if taken and left < 0:
            raise QueueFullError(
                f"Of {self._max_pending} places for what is being prepared {taken} are taken; this "
                f"request needs {num}.",
                retry_after_s=1.0,
            )
        if tenant and exceeds_share(own, num, left=left):
            raise QueueFullError(
                f"Of {self._max_pending} places for what is being prepared {own} are taken by this "
                "key, as many as may.",
                retry_after_s=1.0,
            )

    async def _turn(self, tenant: str) -> None:
        """Wait until a thread is idle and it is the tenant's turn: the thread is taken then."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(turn)
        self._give_turns()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._end_turn()
            elif turn in (line := self._lines.get(tenant, deque())):
                line.remove(turn)
                if not line:
                    del self._lines[tenant]
            raise

    def _give_turns(self) -> None:
        while self._num_idle and self._lines:
            tenant = next(iter(self._lines))
            line = self._lines.pop(tenant)
            turn = line.popleft()
            if line:
                self._lines[tenant] = line  # behind all others
            if not turn.done():
                turn.set_result(None)
                self._num_idle -= 1

    def _ended(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called in whatever thread the job ends."""
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(self._end_turn)

    def _end_turn(self) -> None:
        self._num_idle += 1
        self._give_turns()
