"""`/admin/*`: sleep and wake, abort, caches, log level, state.

Owns the parameters; the work is `server.administration`'s. Only part of the app where there is an
admin key, without which nobody gets here. Invariant: what is refused has changed nothing.
"""

import logging
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator

from janus_core.errors import ParameterError
from server.administration import SleepLevel
from server.context import Context, context_of
from server.dispatch import RequestHandle
from server.json_route import JsonRoute
from server.logs import Level, current_level, set_level
from server.principal import ANONYMOUS
from server.schemas.admin import (
    Aborted,
    AdminState,
    EngineState,
    LiveRequest,
    LogLevelReply,
    SleepState,
)
from server.schemas.common import ErrorBody

logger = logging.getLogger(__name__)

ERRORS: dict[int | str, dict[str, object]] = {
    "4XX": {"model": ErrorBody},
    "5XX": {"model": ErrorBody},
}

router = APIRouter(prefix="/admin", route_class=JsonRoute, tags=["admin"], responses=ERRORS)


@router.get("/state")
async def state(request: Request) -> AdminState:
    """What the server is doing, and for whom."""
    context = context_of(request)
    stats = context.dispatcher.service.stats()
    return AdminState(
        **_sleep_state(context).model_dump(),
        draining=context.dispatcher.draining,
        uptime_s=int(time.time()) - context.created,
        log_level=current_level(),
        engine=EngineState(**{name: getattr(stats, name) for name in EngineState.model_fields}),
        requests=[_live(handle) for handle in context.dispatcher.live_handles()],
    )


@router.post("/sleep")
async def sleep(
    request: Request,
    level: Annotated[SleepLevel, BeforeValidator(int)] = 2,
    *,
    force: bool = False,
    timeout_s: Annotated[float, Query(ge=0, le=3600, allow_inf_nan=False)] = 60.0,
) -> SleepState:
    """Give memory back: the KV pool and the caches (level 1), the weights as well (2).

    Running requests end first, for at most `timeout_s`; with `force` they are aborted.
    """
    context = context_of(request)
    await context.administration.fall_asleep(level, force=force, timeout_s=timeout_s)
    return _sleep_state(context)


@router.post("/wake")
async def wake(request: Request) -> SleepState:
    """Take the memory again, and work."""
    context = context_of(request)
    await context.administration.wake()
    return _sleep_state(context)


@router.post("/abort")
async def abort(
    request: Request,
    request_id: Annotated[str | None, Query(min_length=1, max_length=128)] = None,
    *,
    all: bool = False,
) -> Aborted:
    """End the requests whose `x-request-id` is exactly this, or all."""
    if (request_id is None) != all:
        raise ParameterError("Give request_id, or all=true for all of them.", param="request_id")
    return Aborted(aborted=context_of(request).administration.abort(request_id))


@router.post("/reset_caches")
async def reset_caches(request: Request) -> SleepState:
    """Forget the prefixes and the encoded images kept for later."""
    context = context_of(request)
    await context.administration.reset_caches()
    return _sleep_state(context)


@router.get("/log_level")
async def log_level() -> LogLevelReply:
    """The least severe level that is logged."""
    return LogLevelReply(level=current_level())


@router.post("/log_level")
async def set_log_level(level: Level) -> LogLevelReply:
    """Log what is at least as severe from now on."""
    set_level(level)
    logger.warning("Logging at level %s.", level)
    return LogLevelReply(level=current_level())


def _sleep_state(context: Context) -> SleepState:
    level = context.administration.sleep_level
    return SleepState(state="awake" if level is None else "asleep", level=level)


def _live(handle: RequestHandle) -> LiveRequest:
    principal = handle.record.principal
    return LiveRequest(
        request_id=handle.record.request_id,
        task=handle.task,
        key=None if principal.name == ANONYMOUS.name else principal.name,
        num_choices=handle.record.num_choices,
        age_s=round(time.perf_counter() - handle.submitted_at, 3),
    )
