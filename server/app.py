"""The ASGI application: routes, middleware, error handlers and the parts behind them.

Owns the assembly and its order; knows no endpoint. Invariant: one app has one engine, which runs
exactly as long as the app's lifespan, and nothing here is global.
"""

import importlib.metadata
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from janus_core.pipeline import Pipeline
from server.context import Context
from server.dispatch import Dispatcher
from server.errors import install_handlers
from server.fetch import Fetcher
from server.fetch_policy import FetchPolicy, parse_domains, parse_networks
from server.live_drawings import LiveDrawings
from server.metrics import Metrics
from server.middleware import BodyLimit, RequestContext
from server.offload import Offload
from server.results import ResultStore
from server.routes import (
    ask,
    chat,
    demo,
    health,
    image_codes,
    image_edits,
    images,
    models,
    responses,
    sdapi,
    sdapi_lists,
)
from server.settings import Settings

DISTRIBUTION = "janus-serve"

ROUTES = (
    chat,
    responses,
    ask,
    images,
    image_edits,
    image_codes,
    sdapi,
    sdapi_lists,
    demo,
    models,
    health,
)
"""In the order of the documentation."""


def create_app(pipeline: Pipeline, settings: Settings) -> FastAPI:
    """The application for `pipeline`, whose engine must not have been started."""
    version = _version()
    metrics = Metrics(model_name=pipeline.name, stats=pipeline.engine.stats)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Run the engine while the app runs."""
        offload = Offload(
            num_threads=settings.media_threads, max_pending=pipeline.settings.max_waiting
        )
        # One thread: the autoencoder takes one picture at a time.
        autoencoder = Offload(num_threads=1, max_pending=pipeline.settings.max_waiting)
        fetcher = Fetcher(
            _fetch_policy(settings),
            max_bytes=settings.max_image_bytes,
            timeout_s=settings.media_url_timeout_s,
            max_pending=pipeline.settings.max_waiting,
            observe=lambda outcome, s: metrics.observe("image_fetch_seconds", s, outcome),
        )
        dispatcher = Dispatcher(pipeline, metrics=metrics, max_step_s=settings.max_step_s)
        context = Context(
            settings=settings,
            pipeline=pipeline,
            dispatcher=dispatcher,
            metrics=metrics,
            offload=offload,
            autoencoder=autoencoder,
            drawings=LiveDrawings(),
            results=ResultStore(max_bytes=settings.result_store_bytes, ttl_s=settings.result_ttl_s),
            fetcher=fetcher,
            version=version,
            created=int(time.time()),
        )
        metrics.describe(context.description())
        app.state.context = context
        dispatcher.start()
        try:
            yield
        finally:
            offload.close()
            autoencoder.close()
            await fetcher.close()
            await dispatcher.stop()

    app = FastAPI(
        title="Janus Serve",
        summary="An OpenAI-compatible server for DeepSeek Janus and Janus-Pro.",
        version=version,
        lifespan=lifespan,
    )
    for module in ROUTES:
        app.include_router(module.router)
    install_handlers(app, on_rejection=metrics.rejected)
    # The last one added is the outermost: it sees the refusals of the others.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestContext, observe=metrics.http)
    return app


def _fetch_policy(settings: Settings) -> FetchPolicy:
    schemes = {"off": (), "https": ("https",), "http": ("http", "https")}
    return FetchPolicy(
        frozenset(schemes[settings.media_urls]),
        domains=parse_domains(settings.allowed_media_domains),
        networks=parse_networks(settings.allowed_media_networks),
    )


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed
