"""Pictures kept for a while, for clients that want a URL instead of the bytes.

Owns the files and when they go; knows no endpoint. Used on the event loop only. Invariants: the
store never holds more than `max_bytes`, the oldest files go first, and nobody can guess an id.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from janus_core.errors import RequestError

ID_BYTES = 24
"""Of randomness in an id: whoever knows it may see the picture."""


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A file, its media type, and when it expires on the clock of the store, in seconds."""

    data: bytes
    media_type: str
    expires_s: float


class ResultStore:
    """Files by id, in the order they came. `now_s` is a clock that never goes back."""

    def __init__(
        self, *, max_bytes: int, ttl_s: float, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._now_s = now_s
        self._files: OrderedDict[str, StoredPicture] = OrderedDict()
        self.num_bytes = 0

    def put(self, data: bytes, media_type: str) -> str:
        """Keep a file and return its id; older ones make room. RequestError if it never fits."""
        if len(data) > self._max_bytes:
            raise RequestError(
                f"The picture has {len(data)} bytes, but {self._max_bytes} can be kept for a URL; "
                "ask for b64_json.",
                param="response_format",
            )
        self._drop_expired()
        while self.num_bytes + len(data) > self._max_bytes:
            self._drop_oldest()
        id = f"img_{secrets.token_urlsafe(ID_BYTES)}"
        self._files[id] = StoredPicture(data, media_type, self._now_s() + self._ttl_s)
        self.num_bytes += len(data)
        return id

    def get(self, id: str) -> StoredPicture | None:
        """The file, or None if there is none of this id any more."""
        self._drop_expired()
        return self._files.get(id)

    def remaining_s(self, picture: StoredPicture) -> float:
        """How long it will still be there, unless newer ones take its room."""
        return max(0.0, picture.expires_s - self._now_s())

    def _drop_expired(self) -> None:
        # All live equally long, so the first to come is the first to go.
        while self._files and next(iter(self._files.values())).expires_s <= self._now_s():
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, picture = self._files.popitem(last=False)
        self.num_bytes -= len(picture.data)
