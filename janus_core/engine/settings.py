"""How much the engine may hold and do at once.

Owns the limits and their defaults; knows no model and no torch. Invariant: settings that were
constructed are consistent with each other (`__post_init__` refuses the rest by name).
"""

from dataclasses import dataclass, field

from janus_core.config import BackboneConfig, ModelConfig
from janus_core.errors import ParameterError

SLOT_UNIT = 32
"""Slots are multiples of this many positions, and start at one. Attention reads whole units, so it
is a multiple of every vector width too."""

DEFAULT_SEQUENCES = 32
"""Sequences at once where nobody says how many and `janus_core.device.fit` does not either."""

DEFAULT_STEP_TOKENS = 512
"""Tokens of a step where the machine does not ask for fewer (`janus_core.device.fit`)."""

MIN_PREFILL_TOKENS = 16
"""Left to prefill by default while as many sequences decode as may."""

SPARE_PROMPT_TOKENS = 256
"""Prompt length assumed beside the codes of a picture when the pool's size is not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Limits of one engine.

    The KV pool holds `kv_positions` positions, or what fits into `kv_bytes`; with neither, room for
    `max_sequences` pictures. `max_sequences` bounds the rows of a batch (a guided picture has two);
    0 leaves it to the device, so that `is_sized` is false until `fit` has decided.
    `step_token_budget` bounds the tokens of a step (`tokens_per_step` without it). The queue is
    bounded by `max_waiting` requests of each kind, by `max_waiting_bytes` of what they hold, and by
    `max_queue_s`, the forecast time until a request begins. `text_reserve` and `image_reserve` are
    the fractions of sequences and positions kept from the other kind; text borrows the pictures'
    while there is no picture, and is set back when one comes. `text_growth_tokens` is how far a
    text slot is reserved ahead. `encodes_per_step` new input images at most go through the vision
    tower in a step, each in one piece. `image_prefill_share` of a step's prefill tokens belongs to
    pictures when text wants all of them. A request that waited `patience_steps` for room stops the
    admission of the other kind. `threaded_rendering` decodes pictures in a thread of their own;
    none is begun while `max_sequences` wait for that.

    The next settings are promises, kept by the measured durations of steps (see `pace`). While an
    answer is written, pictures make a step at most `chat_slowdown` times as long; prompts do too,
    or until it takes `token_time_s`. `image_share` of the time is for pictures that want
    to go on, even so. As many pictures are drawn at once as are each done `image_time_s` after
    they began. `prefill_tokens` (prompt tokens beside answers) and `max_images` (pictures at once)
    are fixed numbers instead of measured ones.

    `cuda_graphs` and `deterministic` are for CUDA: steps run as graphs, and all at one padded size.
    """

    kv_positions: int | None = None
    kv_bytes: int | None = None
    max_sequences: int = 0
    step_token_budget: int | None = None
    max_waiting: int = 256
    max_waiting_bytes: int = 256 * 2**20
    max_queue_s: float = 300.0
    prefix_cache: bool = True
    vision_cache_bytes: int = 64 * 2**20
    encodes_per_step: int = 1
    text_reserve: float = 0.25
    image_reserve: float = 0.25
    text_growth_tokens: int = 128
    image_prefill_share: float = 0.25
    patience_steps: int = 256
    max_pending_previews: int = 4
    chat_slowdown: float = 1.5
    token_time_s: float = 0.05
    image_share: float = 0.2
    image_time_s: float = 60.0
    prefill_tokens: int | None = None
    max_images: int | None = None
    threaded_rendering: bool = False
    cuda_graphs: bool = True
    deterministic: bool = False
    is_sized: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_sized", self.max_sequences != 0)
        object.__setattr__(self, "max_sequences", self.max_sequences or DEFAULT_SEQUENCES)
        if self.kv_positions is not None and self.kv_bytes is not None:
            raise ParameterError("Give kv_positions or kv_bytes, not both.", param="kv_bytes")
        for name in ("max_waiting", "text_growth_tokens", "patience_steps", "encodes_per_step"):
            _at_least(name, getattr(self, name), 1)
        for name in ("vision_cache_bytes", "max_pending_previews"):
            _at_least(name, getattr(self, name), 0)
        _at_least("max_sequences", self.max_sequences, 2)
        # Every running sequence decodes in every step, and prefill needs at least a pair's last
        # tokens.
        _at_least("step_token_budget", self.tokens_per_step, self.max_sequences + 2)
        if self.deterministic and not self.cuda_graphs:
            raise ParameterError("deterministic needs cuda_graphs.", param="deterministic")
        for name in ("prefill_tokens", "max_images"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name, least in (("chat_slowdown", 1), ("token_time_s", 0), ("image_time_s", 0)):
            _at_least(name, getattr(self, name), least)
        _at_least("max_waiting_bytes", self.max_waiting_bytes, 1)
        _at_least("max_queue_s", self.max_queue_s, 0)
        for name in ("text_reserve", "image_reserve", "image_prefill_share", "image_share"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ParameterError(f"{name} must be within [0, 1), but is {value}.", param=name)

    @property
    def tokens_per_step(self) -> int:
        """Most tokens of a step: prefill gets what the decoding rows leave of them."""
        if self.step_token_budget is not None:
            return self.step_token_budget
        return max(DEFAULT_STEP_TOKENS, self.max_sequences + MIN_PREFILL_TOKENS)

    def pool_positions(self, config: ModelConfig, *, bytes_per_value: int) -> int:
        """Positions of the KV pool, a multiple of `SLOT_UNIT`; raises ParameterError if there is
        none."""
        if self.kv_positions is not None:
            positions = self.kv_positions
        elif self.kv_bytes is not None:
            positions = self.kv_bytes // bytes_per_position(config.backbone, bytes_per_value)
        else:
            per_sequence = config.vq.num_codes + SPARE_PROMPT_TOKENS
            positions = self.max_sequences * min(per_sequence, config.backbone.max_positions)
            positions += -positions % SLOT_UNIT
        if positions < SLOT_UNIT:
            raise ParameterError(
                f"The KV pool must hold at least {SLOT_UNIT} positions, but holds {positions}.",
                param="kv_positions",
            )
        return positions - positions % SLOT_UNIT


def bytes_per_position(backbone: BackboneConfig, bytes_per_value: int) -> int:
    """Bytes of the keys and values of one position in all layers."""
    return 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim * bytes_per_value


def _at_least(name: str, value: float, low: int) -> None:
    if not value >= low:
        raise ParameterError(f"{name} must be at least {low}, but is {value}.", param=name)
