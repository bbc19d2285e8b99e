"""The engine's numbers, for metrics and for the curious. Owns nothing; plain values of one
moment."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """`num_waiting` and `num_running` are requests, `num_rendering` pictures whose codes are all
    drawn.

    `image_wait_s` and `image_eta_s` tell a picture that came now how
    long it would wait for its start and for its pixels; NaN before any step was measured.
    `text_s` and `image_s` are the modelled seconds given to either kind.

    `kv_usage` and `kv_cached` are the fractions of the pool in use and held by cached prefixes. The
    others count since the start: prefix numbers in tokens, vision numbers in images;
    `uncond_prefix_hits` of `prefix_hits` were in the unconditional prompts of pictures.
    """

    num_running: int
    num_waiting: int
    num_rendering: int
    kv_positions: int
    kv_usage: float
    kv_cached: float
    num_steps: int
    prefix_queries: int
    prefix_hits: int
    uncond_prefix_hits: int
    vision_queries: int
    vision_hits: int
    vision_cache_bytes: int
    num_set_backs: int
    num_failed_steps: int
    num_dropped_previews: int
    image_wait_s: float
    image_eta_s: float
    text_s: float
    image_s: float
