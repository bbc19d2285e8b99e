"""A listener of its own for `/metrics` and the probes, so that the main one need not show them.

Owns the second server of the process; knows nothing of metrics or of signals, which are the main
server's. Invariant: it serves these routes and nothing else, from before the main listener takes
requests until after the last of them was answered.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from server.access import METRICS_PATH, PROBES
from server.context import Context
from server.errors import install_handlers
from server.h11_protocol import ConnectionLimits, GuardedProtocol
from server.listener import Listener
from server.middleware import RequestContext
from server.reserve import Reserve
from server.routes import health

MAX_CONNECTIONS = 64
"""Whoever collects metrics keeps one or two. More are let in for one answer each, as everything
that is asked for here can be."""


class MetricsServer(uvicorn.Server):
    """Answers on `listener` between `start` and `stop`."""

    def __init__(self, context: Context, listener: socket.socket) -> None:
        on_refusal = context.metrics.connection_refused
        reserve = Reserve(paths=PROBES | {METRICS_PATH}, on_refusal=on_refusal)
        limits = ConnectionLimits(on_refusal=on_refusal, reserve=reserve)
        if isinstance(listener, Listener):
            listener.max_connections, listener.on_refusal = MAX_CONNECTIONS, on_refusal
            reserve.listeners = [listener]
        super().__init__(
            uvicorn.Config(
                _app(context),
                http=GuardedProtocol.within(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer; called on the event loop."""
        self._serving = asyncio.ensure_future(self.serve([self._listener]))

    async def stop(self) -> None:
        """Answer what is being answered, and end."""
        self.should_exit = True
        if self._serving is not None:
            await self._serving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to the main server."""
        yield


def _app(context: Context) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.context = context
    app.include_router(health.metrics_router)
    for probe in (health.livez, health.readyz, health.health, health.ping):
        app.add_api_route(f"/{probe.__name__}", probe)
    install_handlers(app, on_rejection=context.metrics.rejected)
    app.add_middleware(RequestContext, observe=context.metrics.http)
    return app
