"""The server's settings: names, ranges, defaults, and in which order sources are asked.

The first wins: flags, `JANUS_*` variables, the file named by `config` (TOML or YAML), defaults.
Knows what a setting means, neither who reads it nor how a source is read. Invariant: frozen once
built, and an unknown name from any source is an error that suggests the nearest known one, never
silently dropped.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from janus_core.threads import parse_threads
from server.access_settings import SECRETS, AccessSettings
from server.intake_settings import MIB, IntakeSettings, Positive, Seconds
from server.settings_sources import explained, file_source, names_in, refuse_unknown

ENV_PREFIX = "JANUS_"


class Settings(AccessSettings, IntakeSettings):
    """Every knob of `janus serve`. Build it with `load_settings`, which explains what is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        case_sensitive=False,
        env_ignore_empty=True,
        str_strip_whitespace=True,
    )

    config: Path | None = Field(None, description="TOML or YAML file with any of these settings.")

    model: str | None = Field(
        None,
        description="Checkpoint: a directory or a Hugging Face id. Default: the embedded one.",
    )
    revision: str | None = Field(None, description="Revision of a Hugging Face id.")
    served_model_name: str | None = Field(
        None, description="Name clients use. Default: the directory's name or the Hugging Face id."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto is float32 on a CPU and bfloat16 on CUDA."
    )
    weight_format: Literal["auto", "fp32", "fp16", "int8", "fp8", "int4"] = Field(
        "auto",
        description="Weights. On a CPU in float32: fp32, fp16 or int8; auto is fp16 with the C++ "
        "kernels on a processor with AVX2, else fp32. On CUDA in bfloat16: int8, fp8 or int4 by "
        "torchao; auto is bfloat16.",
    )
    kv_format: Literal["auto", "fp32", "fp16", "fp8"] = Field(
        "auto",
        description="Keys and values. On a CPU in float32: fp32 or fp16; auto is fp16 with the "
        "C++ kernels and fp16 or int8 weights, else fp32. On CUDA: fp8; auto is the dtype.",
    )
    attention: Literal["auto", "sdpa", "triton", "xformers"] = Field(
        "auto",
        description="What computes attention: sdpa (torch), triton or xformers, which need CUDA "
        "and their packages. With sdpa or xformers no step runs as a graph. auto is triton on "
        "CUDA, on a CPU the C++ kernels, and sdpa where neither is there.",
    )
    native: bool = Field(
        True, description="Use the C++ kernels where they were compiled; plain torch otherwise."
    )

    threads: Annotated[int, BeforeValidator(parse_threads)] = Field(
        0,
        description="Threads that compute on a CPU. 0 or auto: OMP_NUM_THREADS if it is set, else "
        "one per physical core that the process may use.",
    )

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")
    grace_s: Seconds = Field(30.0, description="How long running work may go on after SIGTERM.")
    drain_delay_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        5.0,
        description="How long, of grace_s, the server listens after SIGTERM even if nothing runs, "
        "so that load balancers see that it is not ready.",
    )
    ping_interval_s: Seconds = Field(
        15.0, description="Silence in a stream before a comment is sent."
    )

    kv_positions: Positive | None = Field(
        None, description="Positions of the KV pool. Default: what the memory allows."
    )
    kv_bytes: Positive | None = Field(
        None, description="Bytes of the KV pool, instead of kv_positions."
    )
    max_sequences: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="Sequences decoded at once; a guided image is two. Default: 32 on a CPU; on "
        "CUDA 64 guided images beside answers, or what the pool has room for.",
    )
    step_token_budget: Positive | None = Field(
        None,
        description="Tokens computed per step at most. Default: 512, fewer for a large model on a "
        "CPU.",
    )
    max_waiting: Positive | None = Field(
        None,
        description="Answers that may wait for a slot, pictures besides, and input images to be "
        "decoded, before new ones are refused with 429.",
    )
    max_waiting_bytes: Positive = Field(
        256 * MIB, description="Memory that waiting requests may hold, mostly pixels."
    )
    max_queue_s: Seconds = Field(
        300.0, description="Requests that would begin later than this are refused with 429."
    )
    full_queue_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = Field(
        10.0,
        description="/readyz is 503 once both answers and pictures have been refused for this long "
        "for want of room, until there is some; 0 leaves it at 200.",
    )
    request_timeout_s: Seconds = Field(
        600.0,
        description="Longest time from a request to the end of its answer; a client can ask for "
        "less with x-request-timeout-s.",
    )
    prefix_cache: bool = Field(True, description="Reuse computed prefixes between requests.")
    vision_cache_bytes: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Bytes of encoded input images to keep."
    )
    cuda_graphs: bool = Field(
        True,
        description="On CUDA, run steps as graphs with Triton's kernels, if they are installed.",
    )
    deterministic: bool = Field(
        False,
        description="On CUDA, compute every step at one padded size, so that a seed gives the same "
        "codes alone and beside others. Needs cuda_graphs; refused elsewhere.",
    )

    chat_slowdown: Annotated[float, Field(ge=1, le=1000)] = Field(
        1.5,
        description="Pictures and prompts make steps at most this many times as long as the "
        "answers alone.",
    )
    token_time_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        0.05,
        description="Prompts may make a step this long beside answers, whatever chat_slowdown.",
    )
    image_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="Share of the time that is for pictures however many questions come."
    )
    image_time_s: Seconds = Field(
        60.0, description="As many pictures are drawn at once as are each drawn in this time."
    )
    prefill_tokens: Positive | None = Field(
        None, description="Prompt tokens per step beside answers. Default: from measured durations."
    )
    max_images: Positive | None = Field(
        None, description="Pictures drawn at once. Default: from measured durations."
    )

    max_step_s: Seconds = Field(
        60.0, description="A step that takes longer counts as hung, and the server as not ready."
    )
    watchdog_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = Field(
        30.0,
        description="How long a hung step has to come back before the process ends with status 70; "
        "0 never ends it.",
    )
    max_choices: Annotated[int, Field(ge=1, le=128)] = Field(
        8, description="Largest n of a chat completion."
    )
    max_pictures: Annotated[int, Field(ge=1, le=128)] = Field(
        10, description="Largest n of an image generation."
    )
    max_output_side_px: Annotated[int, Field(ge=16, le=8192)] = Field(
        2048, description="Longest side of a picture a client may ask for."
    )
    image_size_policy: Literal["resize", "native", "strict"] = Field(
        "resize",
        description="A size the model does not draw is made from what it draws (resize), ignored "
        "(native) or refused (strict).",
    )
    result_ttl_s: Seconds = Field(
        3600.0, description="How long a picture asked for as a URL can be fetched."
    )
    result_store_bytes: Positive = Field(
        256 * MIB, description="Memory for such pictures; beyond it the oldest go early."
    )
    public_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        None, description="Start of the URLs of pictures. Default: as the client addressed us."
    )
    media_threads: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="Threads that tokenise, read forms and encode pictures, off the event loop."
    )

    ui: bool = Field(True, description="Serve the page at /.")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe message that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="One readable line, or one JSON object, per message."
    )
    log_prompts: bool = Field(
        False, description="Show the end of each prompt in the access line, without its images."
    )
    metrics_compat: Literal["none", "vllm"] = Field(
        "none", description="Export metrics under vLLM's names as well."
    )
    traces_endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        None,
        description="Where traces go, by OTLP over HTTP, such as http://collector:4318/v1/traces. "
        "Needs the extra otel. Default: no traces are made.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class names it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class names it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file; neither `.env` nor secret files are read."""
        path = init_settings().get("config") or env_settings().get("config")
        if path is None:
            return (init_settings, env_settings)
        return (init_settings, env_settings, file_source(settings_cls, path=Path(str(path))))


def load_settings(flags: Mapping[str, object] | None = None) -> Settings:
    """Build the settings from `flags` (None means not given), the environment and the file.

    Raises `ParameterError` that names the setting, whichever source it came from.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    known = list(Settings.model_fields)
    refuse_unknown(given, known, source="the command line")
    names = names_in(os.environ, prefix=ENV_PREFIX)
    refuse_unknown(names, known, source="the environment", prefix=ENV_PREFIX)
    try:
        return Settings(**given)  # type: ignore[arg-type]  # the model checks them
    except ValidationError as error:
        raise explained(error, secrets=SECRETS) from error
