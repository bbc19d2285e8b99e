"""Embeddings of images seen before, so that a second question about an image skips the tower.

Owns tensors up to a number of bytes, least recently used first out; knows no requests. Invariant:
entries of different tenants are never shared, and the bytes held never exceed the limit.

Shape suffixes: S image slots, D model width.
"""

from collections import OrderedDict

import torch

VisionKey = tuple[str, bytes]
"""Tenant and digest of the pixels."""


class VisionCache:
    """At most `max_bytes` of embeddings; 0 caches nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self.num_hits = 0
        self.num_queries = 0
        self._max_bytes = max_bytes
        self._entries: OrderedDict[VisionKey, torch.Tensor] = OrderedDict()

    def __contains__(self, key: VisionKey) -> bool:
        return key in self._entries

    def get(self, key: VisionKey) -> torch.Tensor | None:
        """The `[S, D]` embeddings, or None; counts a query and perhaps a hit."""
        self.num_queries += 1
        embeddings_SD = self._entries.get(key)
        if embeddings_SD is not None:
            self.num_hits += 1
            self._entries.move_to_end(key)
        return embeddings_SD

    def put(self, key: VisionKey, embeddings_SD: torch.Tensor) -> None:
        """Remember embeddings, evicting the least recently used; too large ones are not kept."""
        if key in self._entries or embeddings_SD.nbytes > self._max_bytes:
            return
        self._entries[key] = embeddings_SD
        self.num_bytes += embeddings_SD.nbytes
        while self.num_bytes > self._max_bytes:
            _, evicted_SD = self._entries.popitem(last=False)
            self.num_bytes -= evicted_SD.nbytes

    def discard(self, key: VisionKey) -> None:
        """Forget one image, if it is known."""
        embeddings_SD = self._entries.pop(key, None)
        if embeddings_SD is not None:
            self.num_bytes -= embeddings_SD.nbytes

    def clear(self) -> None:
        """Forget all images."""
        self._entries.clear()
        self.num_bytes = 0
