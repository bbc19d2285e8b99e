"""The life of a server process: load, serve, drain, stop.

Owns the signals and the order of things at both ends; knows no endpoint. Leans on uvicorn's
shutdown (close the listener, wait for answers, cancel the rest) and puts the drain before it: until
running work has ended, the listener stays open, so that new requests get a 503 and a probe sees
why. Invariant: a server that was told to stop exits with 0, whether or not everything ended in
time, and one whose engine is gone exits with `EXIT_ENGINE`, so that a supervisor starts the next.
"""

import asyncio
import faulthandler
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from janus_core.decode_pool import DecodePool
from janus_core.engine.settings import EngineSettings, bytes_per_position
from janus_core.images import ImageLimits
from janus_core.pipeline import Pipeline
from server.access import PROBES
from server.app import create_app
from server.context import Context
from server.h11_connection import HeadLimits
from server.h11_protocol import ConnectionLimits, GuardedProtocol
from server.listener import NUM_SPARE, Listener, allow_connections, url_of
from server.metrics_port import MAX_CONNECTIONS, MetricsServer
from server.reserve import Reserve
from server.settings import Settings

logger = logging.getLogger(__name__)

FLUSH_S = 10
"""Time for the last bytes of answers after the engine is done."""

BACKLOG = 2048

EXIT_ENGINE = 70
"""The engine died or hung: EX_SOFTWARE of sysexits.h. A healthy start never ends with it."""

ENDING_S = 60.0
"""For the end of the process, once nothing is served any more."""


def serve(
    pipeline: Pipeline,
    settings: Settings,
    *,
    listener: socket.socket,
    metrics_listener: socket.socket | None = None,
) -> int:
    """Serve until a signal, then drain; return the exit code."""
    if isinstance(listener, Listener):
        beside = 0 if metrics_listener is None else MAX_CONNECTIONS + NUM_SPARE
        _bound(listener, settings.max_connections, beside=beside)
    app = create_app(pipeline, settings)
    server = DrainingServer(app, settings=settings, metrics_listener=metrics_listener)
    server.last_resort_s = settings.max_step_s + settings.watchdog_s if settings.watchdog_s else 0.0
    _announce_model(pipeline)
    server.run(sockets=[listener])
    if server.left_engine_behind:
        # A thread that does not end would crash the process while the interpreter is taken apart.
        _end(server.exit_code)
    return server.exit_code


def _end(code: int) -> NoReturn:
    """End the process now, and its children with it."""
    for child in multiprocessing.active_children():
        child.kill()
    logging.shutdown()
    os._exit(code)


def load_pipeline(settings: Settings) -> Pipeline:
    """Load the model as the settings say. Whatever they leave open keeps the engine's default."""
    names = (
        "kv_positions",
        "kv_bytes",
        "max_sequences",
        "step_token_budget",
        "max_waiting",
        "max_waiting_bytes",
        "max_queue_s",
        "prefix_cache",
        "vision_cache_bytes",
        "cuda_graphs",
        "deterministic",
        "chat_slowdown",
        "token_time_s",
        "image_share",
        "image_time_s",
        "prefill_tokens",
        "max_images",
    )
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    return Pipeline.load(
        settings.model,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        weight_format=settings.weight_format,
        kv_format=settings.kv_format,
        native=settings.native,
        attention=settings.attention,
        threads=settings.threads,
        settings=EngineSettings(threaded_rendering=True, **given),
        images=_decode_pool(settings),
        max_text_bytes=settings.max_text_bytes,
        name=settings.served_model_name,
    )


def _decode_pool(settings: Settings) -> DecodePool:
    limits = ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_webp_pixels=settings.max_webp_pixels,
        max_side_px=settings.max_image_side_px,
    )
    return DecodePool(
        limits,
        num_workers=settings.decode_workers,
        time_s=settings.decode_timeout_s,
        memory_bytes=settings.decode_memory_bytes,
    )


class DrainingServer(uvicorn.Server):
    """uvicorn, with a drain between the first signal and its own shutdown, and an end if the engine
    is gone.

    `last_resort_s`: if the event loop itself stands still for so long, as under code that never
    lets go of the interpreter, a thread of C ends the process with status 1. 0 for a server that
    shares its process.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        settings: Settings,
        metrics_listener: socket.socket | None = None,
    ) -> None:
        self._reserve = Reserve(paths=PROBES, on_refusal=self._on_refusal)
        limits = _connection_limits(settings, self._on_refusal, reserve=self._reserve)
        super().__init__(
            uvicorn.Config(
                app,
                http=GuardedProtocol.within(limits),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=FLUSH_S,
            )
        )
        self._app = app
        self._metrics_listener = metrics_listener
        self._metrics_server: MetricsServer | None = None
        self._grace_s = settings.grace_s
        self._drain_delay_s = settings.drain_delay_s
        self.last_resort_s = 0.0
        self.left_engine_behind = False
        self._has_failed = False
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_told = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but remembers the loop for the signal handler."""
        self._loop = asyncio.get_running_loop()
        self._reserve.listeners = [each for each in sockets or [] if isinstance(each, Listener)]
        await super().serve(sockets)

    @property
    def exit_code(self) -> int:
        """0 for a server that was told to stop, even if it was not served by then."""
        if self._is_told:
            return 0
        if self._has_failed:
            return EXIT_ENGINE
        return 0 if self.started else 1

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then print the address: whoever reads it may connect."""
        await super().startup(sockets)
        if not self.started:
            return
        context: Context = self._app.state.context
        context.dispatcher.on_failure = self.fail
        if self._metrics_listener is not None:
            self._metrics_server = MetricsServer(context, self._metrics_listener)
            self._metrics_server.start()
            logger.info("Metrics on %s/metrics", url_of(self._metrics_listener))
        for listener in sockets or []:
            if isinstance(listener, Listener):
                listener.on_refusal = self._on_refusal
            logger.info("Listening on %s", url_of(listener))

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn's, ten times a second; once a second this loop shows that it runs."""
        if self.last_resort_s and counter % 10 == 0:
            faulthandler.dump_traceback_later(self.last_resort_s, exit=True)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, which leaves the app's end out when forced: but an engine's thread that
        still computes while the interpreter is taken apart would crash the process."""
        if self.last_resort_s:
            faulthandler.dump_traceback_later(ENDING_S, exit=True)
        await super().shutdown(sockets)
        context: Context = self._app.state.context
        dispatcher = context.dispatcher
        context.pipeline.images.close()
        if self.force_exit and not self._has_failed:
            await dispatcher.stop()
        if self._metrics_server is not None:
            await self._metrics_server.stop()
        self.left_engine_behind = self._has_failed or not dispatcher.has_stopped

    def fail(self, reason: str) -> None:
        """End without the engine, from which nothing is to be expected: whoever waited for it has
        been told. Called on the event loop."""
        self._has_failed = True
        logger.critical("%s Ending the process with status %d.", reason, self.exit_code)
        self.force_exit = self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the drain, the next one ends the process after the step at hand.
        SIGINT, from somebody at a terminal, does not wait for load balancers.

        uvicorn would remember the signal and raise it again at the end; a drained server has
        answered it, and exits with 0.
        """
        del frame
        name = signal.Signals(sig).name
        if self._is_told or self._loop is None or not self.started:
            logger.warning("%s: exiting at once.", name)
            self._is_told = self.force_exit = self.should_exit = True
            return
        self._is_told = True
        logger.info("%s: draining for at most %g s.", name, self._grace_s)
        delay_s = 0.0 if sig == signal.SIGINT else self._drain_delay_s
        self._loop.call_soon_threadsafe(partial(self.begin_drain, delay_s=delay_s))

    def begin_drain(self, *, delay_s: float = 0.0) -> None:
        """Start the drain, once; called on the event loop."""
        if self._drain is None:
            self._drain = asyncio.ensure_future(self._drain_and_exit(delay_s))

    def _on_refusal(self, reason: str) -> None:
        """Count what never became a request."""
        context: Context = self._app.state.context
        context.metrics.connection_refused(reason)

    async def _drain_and_exit(self, delay_s: float) -> None:
        context: Context = self._app.state.context
        try:
            done = await context.dispatcher.drain(self._grace_s, delay_s=delay_s)
            logger.info("Drained." if done else "The grace time is over; ending what still runs.")
        finally:
            self.should_exit = True


def _connection_limits(
    settings: Settings, on_refusal: Callable[[str], None], *, reserve: Reserve
) -> ConnectionLimits:
    return ConnectionLimits(
        head=HeadLimits(
            max_header_bytes=settings.max_header_bytes,
            max_headers=settings.max_headers,
            max_chunks=settings.max_chunks,
        ),
        header_timeout_s=settings.header_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        min_bytes_per_s=settings.min_bytes_per_s,
        on_refusal=on_refusal,
        reserve=reserve,
    )


def _bound(listener: Listener, max_connections: int, *, beside: int) -> None:
    """Let in no more connections than are wanted, and than there can be files."""
    listener.max_connections = allow_connections(max_connections, beside=beside)
    if listener.max_connections < max_connections:
        logger.warning(
            "The limit of open files leaves room for %d connections instead of %d.",
            listener.max_connections,
            max_connections,
        )


def _announce_model(pipeline: Pipeline) -> None:
    """Say what was loaded, and how much it can hold."""
    config, positions = pipeline.config, pipeline.engine.stats().kv_positions
    per_position = bytes_per_position(config.backbone, pipeline.placement.kv_dtype.itemsize)
    logger.info("Model %s from %s", pipeline.name, pipeline.directory)
    logger.info(
        "Device %s, dtype %s (%s), attention %s, %d compute threads",
        pipeline.device,
        pipeline.dtype,
        pipeline.number_formats,
        pipeline.attention_backend,
        pipeline.num_threads,
    )
    logger.info(
        "KV pool of %d positions (%.0f MiB), context %d, at most %d sequences; pictures of %d px",
        positions,
        positions * per_position / 2**20,
        pipeline.max_context,
        pipeline.settings.max_sequences,
        config.vq.image_size,
    )
