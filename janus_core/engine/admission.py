"""What can never run, refused before it waits.

Owns the checks of a request against the model and the pool; what a request is by itself was checked
when it was made. Knows no queue and no load. Invariant: a request that passes is answered in the
end, however long it waits.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from janus_core.config import ModelConfig
from janus_core.engine.request import ImageRequest, Request, TextRequest
from janus_core.engine.sequence import num_output_of
from janus_core.engine.slots import round_up
from janus_core.errors import ContextLengthError, ParameterError


@dataclass(frozen=True, slots=True)
class Bounds:
    """`context_limit` positions per sequence at most, `num_positions` in all. Thread-safe."""

    config: ModelConfig
    context_limit: int
    num_positions: int

    def check(self, request: Request) -> None:
        """Raise ContextLengthError or ParameterError if the request could never run."""
        self._check_length(request)
        is_text = isinstance(request, TextRequest)
        num_ids = self.config.backbone.vocab_size if is_text else self.config.vq.codebook_size
        _check_ids((id for id, _ in request.sampling.logit_bias), num_ids, param="logit_bias")
        if isinstance(request, TextRequest):
            _check_ids(request.stop_token_ids, num_ids, param="stop_token_ids")
        else:
            self._check_forced_codes(request.forced_codes)

    def _check_forced_codes(self, codes: tuple[int | None, ...]) -> None:
        vq = self.config.vq
        if codes and len(codes) != vq.num_codes:
            raise ParameterError(
                f"{len(codes)} codes were given, but a picture has {vq.num_codes}.", param="codes"
            )
        _check_ids((code for code in codes if code is not None), vq.codebook_size, param="codes")

    def _check_length(self, request: Request) -> None:
        num_output = num_output_of(request, self.config)
        num_prompt = len(request.token_ids)
        needed = num_prompt + num_output - 1
        pair = 2 if isinstance(request, ImageRequest) and request.uncond_token_ids else 1
        if needed > self.context_limit or pair * round_up(needed) > self.num_positions:
            raise ContextLengthError(
                f"The prompt has {num_prompt} tokens and the output up to {num_output}; "
                f"together they exceed what fits, {self.context_limit} positions per sequence "
                f"and {self.num_positions} in all.",
                param="messages" if isinstance(request, TextRequest) else "prompt",
            )


def _check_ids(ids: Iterable[int], num_ids: int, *, param: str) -> None:
    for token_id in ids:
        if not 0 <= token_id < num_ids:
            raise ParameterError(
                f"{param} names token {token_id}, but ids are within [0, {num_ids}).", param=param
            )
