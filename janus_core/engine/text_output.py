"""From sampled ids to text: detokenisation, stop strings, and when an answer ends.

Owns the text of one answer that is not out yet; knows neither torch nor the scheduler. Invariant:
text that left never contains a stop string (unless it was asked for), however the characters were
cut into tokens, and without a stop string the pieces joined are the whole text (from its first
character on, if the request strips its start).
"""

from typing import Protocol

from janus_core.engine.events import FinishReason, SampledToken, TextDelta
from janus_core.engine.request import TextRequest


class Detokenizer(Protocol):
    """Turns ids into text piece by piece; a character may need several ids."""

    def push(self, token_id: int) -> str:
        """The text that is certain now."""

    def flush(self) -> str:
        """The rest."""


class StopStrings:
    """Looks for stop strings in a growing text and holds back what may become one."""

    def __init__(self, stop: tuple[str, ...], *, include_stop: bool) -> None:
        self._stop = stop
        self._include_stop = include_stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may leave, and whether a stop string was found.

        Of several stop strings the one that ends first counts, as if the text came in characters;
        among those the longest.
        """
        if not self._stop:
            return text, False
        held = self._held + text
        found = [
            (at + len(stop), -len(stop)) for stop in self._stop if (at := held.find(stop)) >= 0
        ]
        if found:
            end, negative_length = min(found)
            self._held = ""
            return held[: end if self._include_stop else end + negative_length], True
        num_held = max(_num_begun(held, stop) for stop in self._stop)
        released = held[: len(held) - num_held]
        self._held = held[len(held) - num_held :]
        return released, False

    def flush(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


class TextOutput:
    """The answer to one request as it grows."""

    def __init__(self, request: TextRequest, detokenizer: Detokenizer, *, eos_id: int) -> None:
        self._request = request
        self._detokenizer = detokenizer
        self._eos_id = eos_id
        self._stop_ids = frozenset(request.stop_token_ids)
        if not request.ignore_eos:
            self._stop_ids |= {eos_id}
        self._stop_strings = StopStrings(request.stop, include_stop=request.include_stop)
        self._strips = request.strip_start
        self._num_tokens = 0

    def push(self, token: SampledToken) -> tuple[TextDelta | None, FinishReason | None]:
        """The event of one sampled token, and why the answer ends, if it does.

        A token that ends the answer by its id is not part of the text, unless the request includes
        stops. Stop strings count from `min_tokens` on.
        """
        request = self._request
        self._num_tokens += 1
        stops = token.token_id in self._stop_ids
        ends = stops or self._num_tokens == request.max_tokens
        is_visible = token.token_id != self._eos_id and (not stops or request.include_stop)
        text = self._detokenizer.push(token.token_id) if is_visible else ""
        if ends:
            text += self._detokenizer.flush()
        if self._strips and text:
            # A constraint has one space before it and may begin with another of its own.
            constrained = request.constraint is not None
            text = text.removeprefix(" ") if constrained else text.lstrip()
            self._strips = not text and not constrained
        matched = False
        if self._num_tokens >= request.min_tokens:
            text, matched = self._stop_strings.push(text)
        if ends and not matched:
            text += self._stop_strings.flush()
        reason: FinishReason | None = "length" if ends else None
        if stops or matched:
            reason = "stop"
        if not text and not is_visible:
            return None, reason
        return TextDelta(request.id, text, (token,) if is_visible else ()), reason


def _num_begun(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
