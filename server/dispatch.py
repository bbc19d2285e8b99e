"""Between the engine's thread and the event loop: one sink, and a handle per HTTP request.

Owns the routing of events to the requests they belong to. Knows no HTTP and no JSON. Invariants:
one `call_soon_threadsafe` per step, whatever it brought; a handle that is closed, by whatever way
its HTTP request ended, cancels what the engine has not finished; nobody waits for an engine that
is gone or hangs, because every submitted request gets a terminal event or is given up.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from opentelemetry.trace import Tracer

from janus_core.engine.events import (
    Event,
    Failed,
    Finished,
    ImageProgress,
    Preview,
    Started,
    StepDone,
    TextDelta,
)
from janus_core.engine.forecast import Estimate
from janus_core.engine.request import Request, TextRequest
from janus_core.engine.service import EngineService
from janus_core.errors import (
    AbortedError,
    EngineDeadError,
    JanusError,
    ParameterError,
    StepError,
)
from janus_core.pipeline import Pipeline
from server.deadline import missed
from server.metrics import Metrics
from server.prompt_log import end_of_prompt
from server.rate_limits import RateLimits, most_tokens, used_tokens
from server.record import RequestRecord, task_of
from server.tracing import RequestTrace
from server.watchdog import Watchdog

logger = logging.getLogger(__name__)

STOP_S = 10.0

FOREVER_S = 1e9
"""For the step at hand to end when the engine is stopped."""

RequestEvent = Started | TextDelta | ImageProgress | Preview | Finished
"""What a handle passes on; a `Failed` is raised instead."""


class Dispatcher:
    """Runs the engine, submits requests to it and hands its events to whoever waits for them.

    Made on the event loop that waits, where `on_failure` is called with the reason if only a new
    process can help (`Watchdog` says when).
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        metrics: Metrics,
        limits: RateLimits,
        max_step_s: float,
        watchdog_s: float,
        tracer: Tracer,
        log_prompts: bool,
    ) -> None:
        self.metrics = metrics
        self.tracer = tracer
        self._pipeline = pipeline
        self._log_prompts = log_prompts
        self._limits = limits
        self._num_codes = pipeline.config.vq.num_codes
        self._loop = asyncio.get_running_loop()
        self._handles: dict[str, RequestHandle] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.service: EngineService = pipeline.new_service(self._sink)
        self.draining = False
        self.on_failure: Callable[[str], None] = lambda _: None
        self._watchdog = Watchdog(
            self.service,
            max_step_s=max_step_s,
            watchdog_s=watchdog_s,
            on_hung=self._give_up,
            on_failure=lambda reason: self.on_failure(reason),
        )
        self._max_waiting = pipeline.settings.max_waiting
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the engine's thread."""
        self.service.start()
        self._watching = asyncio.ensure_future(self._watchdog.run())

    @property
    def is_hung(self) -> bool:
        """Whether the step at hand takes longer than any should."""
        return self._watchdog.is_hung

    @property
    def has_stopped(self) -> bool:
        """Whether the engine's thread has ended."""
        return not self.service.is_alive

    async def drain(self, grace_s: float, *, delay_s: float = 0.0) -> bool:
        """Take no new work, wait for the rest, at least `delay_s` and at most `grace_s`, and stop
        the engine; whether all ended in time.

        Waits on the event loop and in no thread: a thread that waits out the grace time would keep
        the process alive although a second signal has ended everything else.
        """
        self.draining = True
        self.service.drain(0.0)
        await asyncio.sleep(min(delay_s, grace_s))
        done = await self.wait_until_idle(max(0.0, grace_s - delay_s))
        await self.stop()
        return done

    async def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until every request has ended; whether that was in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    def live_handles(self) -> list["RequestHandle"]:
        """Those whose requests have not all ended, in the order they came."""
        return list(dict.fromkeys(self._handles.values()))

    async def stop(self) -> None:
        """Stop the engine; what is alive fails. Safe to call again.

        A hung step cannot be interrupted: at once, or if it was not known to be hung after
        `STOP_S`, its thread, a daemon, is left behind.
        """
        if self._watching is not None:
            self._watching.cancel()
        stopped = asyncio.Event()

        def stop() -> None:
            self.service.stop()
            with suppress(RuntimeError):  # the loop did not wait so long
                self._loop.call_soon_threadsafe(stopped.set)

        threading.Thread(target=stop, name="stop-engine", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.0 if self.is_hung else STOP_S):
                await stopped.wait()

    def estimate(self, requests: Sequence[Request], *, record: RequestRecord) -> Estimate | None:
        """When the last of `requests`, pictures of one prompt, would be there if the sender of the
        record's request asked for them now; None for text, and before the first step was
        measured."""
        request = replace(requests[0], tenant=record.principal.tenant)
        return self.service.estimate(request, num_images=len(requests))

    def check_room(self, record: RequestRecord, *, draws: bool) -> None:
        """Raise what a request of the record's sender would be refused with, before it is read."""
        patience_s = record.deadline_s - time.monotonic()
        self.service.check_room(record.principal.tenant, draws=draws, patience_s=patience_s)

    def submit(self, requests: Sequence[Request], *, record: RequestRecord) -> "RequestHandle":
        """Submit all of `requests` or, if one is refused, none: the error is raised here.

        They are made the sender's here, the one way that all work takes: who could forget the
        tenant would let caches tell one client what another has asked.
        """
        if self.is_hung:
            raise EngineDeadError("The engine does not answer.")
        if len(requests) > self._max_waiting:
            # Not a matter of load: so many never find room in the queue.
            raise ParameterError(
                f"n is {len(requests)}, but at most {self._max_waiting} requests may wait on this "
                "server.",
                param="n",
            )
        tenant = record.principal.tenant
        requests = [replace(request, tenant=tenant) for request in requests]
        costs = {request.id: most_tokens(request, self._num_codes) for request in requests}
        self._describe(requests, record)
        handle = RequestHandle(self, requests, record=record)
        handle.check_deadline()
        patience_s = record.deadline_s - time.monotonic()
        self._limits.reserve(record.principal, costs)
        handle.trace.submitted(requests[0], num_requests=len(requests))
        record.hand_over()
        for index, request in enumerate(requests):
            self._handles[request.id] = handle
            self._idle.clear()
            try:
                self.service.submit(request, patience_s=patience_s)
            except JanusError:
                self._forget(request.id)
                handle.close()
                # What was submitted before is cancelled, and settles itself when it has ended.
                for left in requests[index:]:
                    self._limits.settle(record.principal, left.id, used=0)
                raise
        return handle

    def allowance(self, request: Request) -> int:
        """Most tokens or codes that a request can get."""
        return request.max_tokens if isinstance(request, TextRequest) else self._num_codes

    def _describe(self, requests: Sequence[Request], record: RequestRecord) -> None:
        """Note for the access line what is asked."""
        first = requests[0]
        record.model = self._pipeline.name
        record.num_input_images = len(first.images) if isinstance(first, TextRequest) else 0
        if self._log_prompts:
            record.prompt = end_of_prompt(first, self._pipeline.tokenizer)

    def _sink(self, events: Sequence[Event]) -> None:
        """Called once per step by the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, StepDone):
                self.metrics.step(event)
                continue
            terminal = isinstance(event, Finished | Failed)
            find = self._forget if terminal else self._handles.get
            handle = find(event.request_id)
            if handle is None:
                # A bug, but dropping the rest of the step's events would harm other requests.
                logger.error("Event of an unknown request: %s", type(event).__name__)
                continue
            self._observe(event, handle)
            if isinstance(event, Finished | Failed):
                principal, used = handle.record.principal, used_tokens(event)
                self._limits.settle(principal, event.request_id, used=used)
            handle.put(event)

    def _give_up(self) -> None:
        """A step that hangs has no events, so who waits for one is told here. If it goes on in the
        end, the requests it was computing are cancelled, because nobody waits any more."""
        for request_id, handle in self._handles.items():
            handle.give_up(request_id)

    def _forget(self, request_id: str) -> "RequestHandle | None":
        handle = self._handles.pop(request_id, None)
        if not self._handles:
            self._idle.set()
        return handle

    def _observe(self, event: Event, handle: "RequestHandle") -> None:
        metrics, task = self.metrics, handle.task
        if isinstance(event, Started):
            metrics.observe("request_queue_time_seconds", event.queue_s, task)
        elif isinstance(event, TextDelta):
            waited_s = handle.since_last_token_s(event.request_id)
            if waited_s is not None and event.tokens:
                for _ in event.tokens:
                    metrics.observe(
                        "inter_token_latency_seconds", waited_s / len(event.tokens), task
                    )
        elif isinstance(event, Preview) and event.index == 0:
            waited_s = time.perf_counter() - handle.submitted_at
            metrics.observe("time_to_first_partial_image_seconds", waited_s)
        elif isinstance(event, Finished):
            metrics.finished(event, task=task, is_late=handle.is_late)
            if event.reason == "cancelled" and not handle.is_late:
                metrics.count("cancelled_steps_saved", task, amount=handle.num_left(event))
            handle.record.add(event)
            handle.trace.finished(event)
        elif isinstance(event, Failed):
            metrics.failed(event, task=task)
            handle.trace.failed(event)


class RequestHandle:
    """The events of one HTTP request: of all its requests to the engine, as they arrive."""

    def __init__(
        self, dispatcher: Dispatcher, requests: Sequence[Request], *, record: RequestRecord
    ) -> None:
        self.record = record
        self.task = task_of(requests[0], record)
        self.submitted_at = time.perf_counter()
        self._service = dispatcher.service
        self.trace = RequestTrace(dispatcher.tracer, model_name=record.model)
        self._metrics = dispatcher.metrics
        self._index_of = {request.id: index for index, request in enumerate(requests)}
        self._allowance = {request.id: dispatcher.allowance(request) for request in requests}
        self._open = set(self._index_of)
        self._closed = False
        self._interrupted = False
        self._has_started = False
        self.is_late = False
        self._queue: asyncio.Queue[RequestEvent | Failed] = asyncio.Queue()
        self._last_token_at: dict[str, float] = {}

    async def events(
        self, *, idle_s: float | None = None
    ) -> AsyncIterator[tuple[int, RequestEvent] | None]:
        """Pairs of the request's index and its event, until the last has finished.

        Yields None after `idle_s` of silence. Raises the error of the first request that failed,
        and when the deadline passes.
        """
        num_unfinished = len(self._index_of)
        idle_s = math.inf if idle_s is None else idle_s
        while num_unfinished:
            self.check_deadline()
            left_s = self.record.deadline_s - time.monotonic() if self._open else math.inf
            try:
                async with asyncio.timeout(min(idle_s, left_s, FOREVER_S)):
                    event = await self._queue.get()
            except TimeoutError:
                if idle_s <= left_s:
                    yield None
                continue
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                if event.reason == "cancelled" and not self._interrupted:
                    raise StepError("The server cancelled the request.")
                num_unfinished -= 1
            yield self._index_of[event.request_id], event

    def num_left(self, event: Finished) -> int:
        """Tokens or codes that a request might have had beyond those that it got."""
        return max(0, self._allowance[event.request_id] - event.usage.output_tokens)

    def check_deadline(self) -> None:
        """Raise if the deadline has passed and something is left to be computed."""
        if not self._open or time.monotonic() < self.record.deadline_s:
            return
        self.is_late = True
        raise missed(
            self.record,
            self._metrics,
            has_begun=self._has_started,
            retry_after_s=self._service.retry_after_s,
        )

    def put(self, event: RequestEvent | Failed) -> None:
        """Take an event from the dispatcher; after `close` nobody is there to read it."""
        self._has_started |= isinstance(event, Started)
        if isinstance(event, Finished | Failed):
            self._open.discard(event.request_id)
        if not self._closed:
            self._queue.put_nowait(event)

    def give_up(self, request_id: str) -> None:
        """Tell who waits that no answer will come; the engine has not ended the request."""
        if not self._closed:
            error = EngineDeadError("The engine does not answer.")
            self._queue.put_nowait(Failed(request_id, error))

    def remaining_s(self) -> float | None:
        """Estimated seconds until the last of the pictures is there; None where nothing tells."""
        estimates = [self._service.estimate(request_id) for request_id in self._open]
        known = [estimate.remaining_s for estimate in estimates if estimate is not None]
        return max(known, default=None)

    def interrupt(self) -> None:
        """Cancel whatever has not ended, and still tell who waits how it ended."""
        self._interrupted = True
        for request_id in self._open:
            self._service.cancel(request_id)

    def abort(self) -> None:
        """Cancel whatever has not ended, and tell who waits that somebody wanted it so."""
        error = AbortedError("The request was ended by whoever runs this server.")
        for request_id in self._open:
            self._service.cancel(request_id)
            if not self._closed:
                self._queue.put_nowait(Failed(request_id, error))

    def close(self) -> None:
        """Cancel whatever has not ended. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        for request_id in self._open:
            self._service.cancel(request_id)

    def since_last_token_s(self, request_id: str) -> float | None:
        """Time since the request's last tokens; None at its first ones."""
        now = time.perf_counter()
        last = self._last_token_at.get(request_id)
        self._last_token_at[request_id] = now
        return None if last is None else now - last
