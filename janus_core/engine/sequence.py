"""What the engine remembers of a request while it lives: its sequences and how far they are.

Owns tokens and counts; knows neither torch nor which position is free. Invariant: all sequences of
a request are equally long at every sampling, and every token but the last has, or will get, its
keys and values in the sequence's slot:

    tokens  [0, num_computed)               in the slot
            [num_computed, len(tokens))     pending: to be computed by coming steps
"""

from dataclasses import dataclass, field
from enum import Enum

from janus_core.config import ModelConfig
from janus_core.engine.events import CodeLogprob
from janus_core.engine.request import ImageInput, ImageRequest, Request, TextRequest
from janus_core.engine.slots import Slot


class Role(Enum):
    """What a sequence is for; decides which head reads it."""

    TEXT = "text"
    COND = "cond"
    UNCOND = "uncond"


@dataclass(eq=False, slots=True)
class Sequence:
    """`tokens` are ids of the joint space (code + vocab_size).

    `keys[i]` identifies what position `i` holds across requests: the token id, or for the
    placeholders of an image a negative number made of the image's digest and the place in it.
    Prefixes are shared among sequences of equal `salt` only.
    """

    role: Role
    tokens: list[int]
    keys: list[int]
    salt: str
    slot: Slot | None = None

    @property
    def num_computed(self) -> int:
        return 0 if self.slot is None else self.slot.num_computed

    @property
    def num_pending(self) -> int:
        return len(self.tokens) - self.num_computed

    def append(self, token_id: int) -> None:
        self.tokens.append(token_id)
        if self.keys is not self.tokens:
            self.keys.append(token_id)


@dataclass(eq=False, slots=True)
class RequestState:
    """A live request. `order` is its rank of arrival; `max_positions` what each sequence ever
    needs; `num_charged` are the row-steps its tenant was charged for it.

    `embedded` are the indices of images whose embeddings the runner holds for this request,
    `code_logprobs` those of the drawn codes by place, if the request asked for them. Times are
    readings of the engine's clock in seconds, None before the event.
    """

    request: Request
    sequences: tuple[Sequence, ...]
    order: int
    max_positions: int
    submitted_s: float
    num_output: int = 0
    num_cached: int = 0
    embedded: set[int] = field(default_factory=set)
    code_logprobs: dict[int, CodeLogprob] = field(default_factory=dict)
    num_charged: int = 0
    blocked_since: int | None = None
    started_s: float | None = None
    first_s: float | None = None
    ended_s: float | None = None
    vision_encode_s: float = 0.0

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def tenant(self) -> str:
        return self.request.tenant

    @property
    def is_image(self) -> bool:
        return isinstance(self.request, ImageRequest)

    @property
    def num_prompt(self) -> int:
        return len(self.request.token_ids)

    @property
    def is_running(self) -> bool:
        return self.sequences[0].slot is not None

    @property
    def is_decoding(self) -> bool:
        """Whether one token per sequence is all that is missing before the next sample."""
        return all(len(sequence.tokens) - sequence.num_computed == 1 for sequence in self.sequences)

    @property
    def output_ids(self) -> list[int]:
        """The sampled ids of the joint space."""
        return self.sequences[0].tokens[self.num_prompt :]

    def num_to_draw(self, num_codes: int) -> int:
        """How many of the `num_codes` codes of a picture are neither drawn nor forced."""
        forced = self.request.forced_codes if isinstance(self.request, ImageRequest) else ()
        return forced[self.num_output :].count(None) if forced else num_codes - self.num_output

    def append(self, token_id: int) -> None:
        """Add a sampled id of the joint space to all sequences."""
        for sequence in self.sequences:
            sequence.append(token_id)
        self.num_output += 1

    def append_forced(self, vocab_size: int) -> None:
        """Add the codes that the request forces from here on, up to the next one to be drawn."""
        forced = self.request.forced_codes if isinstance(self.request, ImageRequest) else ()
        for code in forced[self.num_output :]:
            if code is None:
                return
            self.append(vocab_size + code)


def new_state(
    request: Request,
    *,
    config: ModelConfig,
    public_ids: frozenset[int],
    order: int,
    now_s: float,
) -> RequestState:
    """The state of a request that has just arrived.

    A sequence made of `public_ids` only (the unconditional prompt of beginning, padding and
    begin-of-image) holds nothing of any client: it is shared among all tenants, unless the client's
    own codes follow.
    """
    if isinstance(request, TextRequest):
        tokens = list(request.token_ids)
        keys = _keys_of(tokens, request.images) if request.images else tokens
        sequences: tuple[Sequence, ...] = (Sequence(Role.TEXT, tokens, keys, request.tenant),)
    else:
        sequences = _image_sequences(request, public_ids)
    state = RequestState(
        request=request,
        sequences=sequences,
        order=order,
        # The last sampled token is never fed back.
        max_positions=len(request.token_ids) + num_output_of(request, config) - 1,
        submitted_s=now_s,
    )
    state.append_forced(config.backbone.vocab_size)
    return state


def num_output_of(request: Request, config: ModelConfig) -> int:
    """Tokens a request is answered with: at most, for text; exactly, for pictures."""
    return request.max_tokens if isinstance(request, TextRequest) else config.vq.num_codes


def _image_sequences(request: ImageRequest, public_ids: frozenset[int]) -> tuple[Sequence, ...]:
    cond = list(request.token_ids)
    sequences = [Sequence(Role.COND, cond, cond, request.tenant)]
    if request.uncond_token_ids is not None:
        uncond = list(request.uncond_token_ids)
        is_public = public_ids.issuperset(uncond) and not request.forced_codes
        salt = "" if is_public else request.tenant
        sequences.append(Sequence(Role.UNCOND, uncond, uncond, salt))
    return tuple(sequences)


def _keys_of(tokens: list[int], images: tuple[ImageInput, ...]) -> list[int]:
    keys = list(tokens)
    for image in images:
        # The whole digest, so that equal keys mean equal images; negative, so that no id equals it.
        base = int.from_bytes(image.digest, "big") << 32
        for place in range(image.num_tokens):
            keys[image.first + place] = -(base + place + 1)
    return keys
