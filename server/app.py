"""The ASGI application: routes, middleware, error handlers and the parts behind them.

Owns the assembly and its order; knows no endpoint. Invariant: one app has one engine, which runs
exactly as long as the app's lifespan, and nothing here is global.
"""

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from opentelemetry.trace import TracerProvider
from starlette.middleware.cors import CORSMiddleware

from janus_core.pipeline import Pipeline
from server.access import Access
from server.administration import Administration
from server.admission import ASKING, DRAWING, Admission
from server.context import Context
from server.crowding import Crowding
from server.dispatch import Dispatcher
from server.errors import install_handlers
from server.fetch import Fetcher
from server.fetch_policy import FetchPolicy, parse_domains, parse_networks
from server.keys import Keyring, parse_list, read_file
from server.live_drawings import LiveDrawings
from server.metrics import Metrics
from server.middleware import BodyLimit, BodyLimits, RequestContext
from server.offload import Offload
from server.openapi import declare_refusals
from server.origins import ANY, EXPOSED_HEADERS, parse_hosts, parse_origins
from server.principal import Limits
from server.rate_limits import RateLimits
from server.results import ResultStore
from server.routes import (
    admin,
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
    ui,
)
from server.settings import Settings
from server.tracing import Tracing

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


def create_app(
    pipeline: Pipeline, settings: Settings, *, tracer_provider: TracerProvider | None = None
) -> FastAPI:
    """The application for `pipeline`, whose engine must not have been started.

    Traces go to `tracer_provider`; without one, to where the settings say, if they say so.
    """
    version = _version()
    tracing = Tracing(settings.traces_endpoint, provider=tracer_provider)
    metrics = _new_metrics(pipeline, settings)
    limits = RateLimits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Run the engine while the app runs."""
        context = _new_context(
            pipeline, settings, metrics=metrics, limits=limits, tracing=tracing, version=version
        )
        _describe(context)
        app.state.context = context
        pipeline.images.start()
        context.dispatcher.start()
        try:
            yield
        finally:
            context.offload.close()
            context.decoding.close()
            context.autoencoder.close()
            pipeline.images.close()
            await context.fetcher.close()
            await context.dispatcher.stop()
            await tracing.close()

    app = FastAPI(
        title="Janus Serve",
        summary="An OpenAI-compatible server for DeepSeek Janus and Janus-Pro.",
        version=version,
        lifespan=lifespan,
        telemetry=tracing.config(),
    )
    for module in ROUTES:
        app.include_router(module.router)
    if settings.admin_key is not None:
        app.include_router(admin.router)
    if settings.metrics_port is None:
        app.include_router(health.metrics_router)
    if settings.ui:
        app.include_router(ui.ui_router())
    declare_refusals(app)
    install_handlers(app, on_rejection=metrics.rejected)
    # The last one added is the outermost: it sees the refusals of the others.
    app.add_middleware(BodyLimit, limits=_body_limits(settings))
    _guard(app, settings, limits=limits, metrics=metrics)
    app.add_middleware(RequestContext, observe=metrics.http, templates=ASKING | DRAWING)
    return app


def _new_metrics(pipeline: Pipeline, settings: Settings) -> Metrics:
    return Metrics(
        model_name=pipeline.name,
        stats=pipeline.engine.stats,
        device_memory=pipeline.device_memory,
        lost_decoders=lambda: pipeline.images.num_lost,
        num_tasks=lambda: len(asyncio.all_tasks()),
        compat=settings.metrics_compat,
    )


def _describe(context: Context) -> None:
    """Tell the metrics what runs here, and where to look up whether it sleeps."""
    infos = {"build_info": context.description(), "model_info": _model_info(context.pipeline)}
    context.metrics.describe(infos)
    context.metrics.watch_sleep(lambda: context.administration.sleep_level or 0)


def _model_info(pipeline: Pipeline) -> dict[str, str]:
    vq = pipeline.config.vq
    return {
        "max_context": str(pipeline.max_context),
        "image_size_px": str(vq.image_size),
        "codes_per_image": str(vq.num_codes),
    }


def _new_context(
    pipeline: Pipeline,
    settings: Settings,
    *,
    metrics: Metrics,
    limits: RateLimits,
    tracing: Tracing,
    version: str,
) -> Context:
    """The parts of the server; on the event loop they will run on."""
    max_pending = pipeline.settings.max_waiting
    offload = Offload(num_threads=settings.media_threads, max_pending=max_pending)
    # A thread for each process, so that whose turn it is is decided before a process is waited for.
    decoding = Offload(num_threads=settings.decode_workers, max_pending=max_pending)
    # One thread: the autoencoder takes one picture at a time.
    autoencoder = Offload(num_threads=1, max_pending=max_pending)
    fetcher = Fetcher(
        _fetch_policy(settings),
        max_bytes=settings.max_image_bytes,
        timeout_s=settings.media_url_timeout_s,
        max_redirects=settings.max_media_redirects,
        max_at_once=settings.max_fetches,
        max_at_once_per_request=settings.max_fetches_per_request,
        max_pending=max_pending,
        observe=lambda outcome, s: metrics.observe("image_fetch_seconds", s, outcome),
        on_blocked=lambda reason: metrics.count("image_fetch_blocked", reason),
    )
    dispatcher = Dispatcher(
        pipeline,
        metrics=metrics,
        limits=limits,
        max_step_s=settings.max_step_s,
        watchdog_s=settings.watchdog_s,
        tracer=tracing.tracer,
        log_prompts=settings.log_prompts,
    )
    crowding = Crowding(dispatcher.service.has_room, limit_s=settings.full_queue_s)
    dispatcher.service.on_refused = crowding.refused
    return Context(
        settings=settings,
        pipeline=pipeline,
        dispatcher=dispatcher,
        crowding=crowding,
        administration=Administration(pipeline, dispatcher),
        metrics=metrics,
        offload=offload,
        decoding=decoding,
        autoencoder=autoencoder,
        drawings=LiveDrawings(),
        results=ResultStore(max_bytes=settings.result_store_bytes, ttl_s=settings.result_ttl_s),
        fetcher=fetcher,
        version=version,
        created=int(time.time()),
    )


def _guard(app: FastAPI, settings: Settings, *, limits: RateLimits, metrics: Metrics) -> None:
    """Put keys, limits, deadlines and origins in front of `app`. Raises ParameterError."""
    hosts = settings.allowed_hosts
    app.add_middleware(Admission, timeout_s=settings.request_timeout_s)
    app.add_middleware(
        Access,
        keyring=_keyring(settings),
        limits=limits,
        on_rejection=metrics.rejected,
        hosts=None if hosts is None else parse_hosts(hosts),
        open_metrics=settings.open_metrics,
    )
    if settings.allowed_origins is None:
        return
    # Outside of the keys: a browser asks whether it may, before it sends one.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=parse_origins(settings.allowed_origins),
        allow_methods=("GET", "POST"),
        allow_headers=(ANY,),
        expose_headers=EXPOSED_HEADERS,
    )


def _keyring(settings: Settings) -> Keyring:
    """The keys of all sources. Raises ParameterError for a file that cannot be used."""
    entries = []
    if settings.api_keys is not None:
        entries += parse_list(settings.api_keys.get_secret_value(), param="api_keys")
    if settings.api_keys_file is not None:
        entries += read_file(settings.api_keys_file)
    admin_key = settings.admin_key
    return Keyring(
        entries,
        admin_key=None if admin_key is None else admin_key.get_secret_value(),
        limits=Limits(
            settings.requests_per_minute,
            settings.tokens_per_minute,
            settings.concurrent_requests,
        ),
    )


def _body_limits(settings: Settings) -> BodyLimits:
    return BodyLimits(
        max_bytes=settings.max_body_bytes,
        max_held_bytes=settings.max_held_bytes,
        timeout_s=settings.body_timeout_s,
        min_bytes_per_s=settings.min_bytes_per_s,
    )


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
