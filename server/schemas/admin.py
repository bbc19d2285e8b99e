"""`/admin/*`.

Owns the shapes of its replies; knows nothing about how the values come about. Invariant: nothing of
what clients said or were answered is in them.
"""

from typing import Literal

from server.logs import Level
from server.schemas.common import Reply


class SleepState(Reply):
    """`level` is null while the server is awake."""

    state: Literal["awake", "asleep"]
    level: int | None


class Aborted(Reply):
    """How many HTTP requests were ended."""

    aborted: int


class LogLevelReply(Reply):
    """The least severe level that is logged."""

    level: Level


class LiveRequest(Reply):
    """An HTTP request the engine works on. `key` is the name of its key, if there are keys."""

    request_id: str
    task: str
    key: str | None
    num_choices: int
    age_s: float


class EngineState(Reply):
    """The engine's numbers of this moment; fractions are of the KV pool."""

    num_running: int
    num_waiting: int
    num_rendering: int
    num_steps: int
    num_failed_steps: int
    kv_positions: int
    kv_usage: float
    kv_cached: float
    vision_cache_bytes: int
    prefix_queries: int
    prefix_hits: int
    vision_queries: int
    vision_hits: int


class AdminState(SleepState):
    """What the server is doing."""

    draining: bool
    uptime_s: int
    log_level: Level
    engine: EngineState
    requests: list[LiveRequest]
