"""What whoever runs the server does to it while it runs: sleep, wake, abort, forget.

Owns the order of these things and the state they leave; knows no HTTP. Used on the event loop only.
Invariant: of sleeping and waking one happens at a time, and a server that could not fall asleep, or
not wake, is what it was before.
"""

import asyncio
import logging
from typing import Literal

from janus_core.errors import DrainingError, RequestError
from janus_core.pipeline import Pipeline
from server.dispatch import Dispatcher

SleepLevel = Literal[1, 2]
"""1 gives back the KV pool and the caches, 2 the weights as well."""

DRAINING_RETRY_S = 5.0

logger = logging.getLogger(__name__)


class Administration:
    """Acts on the engine through its thread, between two steps."""

    def __init__(self, pipeline: Pipeline, dispatcher: Dispatcher) -> None:
        self._engine = pipeline.engine
        self._sleep = pipeline.sleep
        self._dispatcher = dispatcher
        self._one_at_a_time = asyncio.Lock()
        self.sleep_level: SleepLevel | None = None
        """None is awake."""

    async def fall_asleep(self, level: SleepLevel, *, force: bool, timeout_s: float) -> None:
        """Take no new work, let the running work end or, with `force`, end it, and give the memory
        back. Raises RequestError if work is left after `timeout_s`."""
        async with self._one_at_a_time:
            self._refuse_if_draining()
            service = self._dispatcher.service
            service.begin_sleep()
            try:
                if force:
                    self.abort(None)
                if not await self._dispatcher.wait_until_idle(timeout_s):
                    raise RequestError(
                        f"Requests are still running after {timeout_s:g} s, and the server stays "
                        "awake; force=true ends them.",
                        param="timeout_s",
                        code="still_busy",
                    )
                keep_weights = level == 1 and self.sleep_level != 2
                await asyncio.wrap_future(
                    service.call(lambda: self._sleep.fall_asleep(keep_weights=keep_weights))
                )
                self.sleep_level = 1 if keep_weights else 2
                logger.info("Asleep at level %d.", self.sleep_level)
            finally:
                if self.sleep_level is None:
                    service.end_sleep()

    async def wake(self) -> None:
        """Take the memory back, and work again; without effect if it is awake."""
        async with self._one_at_a_time:
            self._refuse_if_draining()
            if self.sleep_level is None:
                return
            service = self._dispatcher.service
            await asyncio.wrap_future(service.call(self._sleep.wake))
            self.sleep_level = None
            service.end_sleep()

    def abort(self, request_id: str | None) -> int:
        """End the HTTP requests with exactly this id, or all; how many these were."""
        handles = [
            handle
            for handle in self._dispatcher.live_handles()
            if request_id in (None, handle.record.request_id)
        ]
        for handle in handles:
            handle.abort()
        return len(handles)

    async def reset_caches(self) -> None:
        """Forget the prefixes and the encoded images kept for later."""
        await asyncio.wrap_future(self._dispatcher.service.call(self._engine.reset_caches))

    def _refuse_if_draining(self) -> None:
        if self._dispatcher.draining:
            raise DrainingError("The server is shutting down.", retry_after_s=DRAINING_RETRY_S)
