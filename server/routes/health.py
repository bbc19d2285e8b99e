"""`/health`, `/ping`, `/livez`, `/readyz`, `/version`, `/load` and `/metrics`.

Owns what machines ask about the server; knows nothing of its work. Invariants: `/readyz` is 200
only if a request sent now would be taken, or the queue has not been full for long; `/health`, which
others take for a reason to restart, does not mind a full queue; and `/livez` fails only if nothing
but a restart can help.
"""

import math

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from server.context import Context, context_of
from server.schemas.models import Health, Load, Version

router = APIRouter(tags=["operations"])
metrics_router = APIRouter(tags=["operations"])
"""Apart, because it may have a port of its own."""

DRAINING = "draining"
ASLEEP = "asleep"
FULL = "queue full"
UNHEALTHY: dict[int | str, dict[str, object]] = {503: {"model": Health}}


@router.get("/livez", responses=UNHEALTHY)
async def livez(request: Request, response: Response) -> Health:
    """Whether the process is worth keeping: a dead engine does not come back."""
    context = context_of(request)
    # A drain stops the engine at its end, and is no reason to kill what is still being sent.
    return _answer(response, None if context.dispatcher.draining else _engine_fault(context))


@router.get("/readyz", responses=UNHEALTHY)
async def readyz(request: Request, response: Response) -> Health:
    """Whether a request would be taken now."""
    context = context_of(request)
    obstacle = _obstacle(context)
    if obstacle is None and context.crowding.is_full():
        obstacle = FULL
    return _answer(response, obstacle)


@router.get("/health", responses=UNHEALTHY)
async def health(request: Request, response: Response) -> Health:
    """The same, however full the queue is, under the name other servers use."""
    return _answer(response, _obstacle(context_of(request)))


@router.get("/ping", responses=UNHEALTHY)
async def ping(request: Request, response: Response) -> Health:
    """As `/health`, where SageMaker asks."""
    return await health(request, response)


@router.get("/load")
async def load(request: Request) -> Load:
    """How busy it is: small enough to be asked every second."""
    context = context_of(request)
    stats = context.pipeline.engine.stats()
    running = stats.num_running + stats.num_rendering
    return Load(
        status=_obstacle(context) or "ok",
        server_load=running + stats.num_waiting,
        num_requests_running=running,
        num_requests_waiting=stats.num_waiting,
        image_queue_wait_s=_known(stats.image_wait_s),
        image_eta_s=_known(stats.image_eta_s),
    )


@router.get("/version")
async def version(request: Request) -> Version:
    """What runs here."""
    context = context_of(request)
    return Version(model=context.model_name, **context.description())


@metrics_router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(context_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _known(seconds: float) -> float | None:
    """JSON has no NaN, which stands for an estimate there is nothing to make from."""
    return seconds if math.isfinite(seconds) else None


def _answer(response: Response, obstacle: str | None) -> Health:
    response.status_code = 200 if obstacle is None else 503
    if obstacle == DRAINING:
        response.headers["connection"] = "close"
    return Health(status=obstacle or "ok")


def _obstacle(context: Context) -> str | None:
    """Why no request would be taken, however few there were; or None."""
    if context.dispatcher.draining:
        return DRAINING
    if context.dispatcher.service.is_asleep:
        return ASLEEP
    return _engine_fault(context)


def _engine_fault(context: Context) -> str | None:
    """A thread that has ended, or a step that does not: both need a restart."""
    if not context.dispatcher.service.healthy:
        return "engine dead"
    return "engine hung" if context.dispatcher.is_hung else None
