"""What of `torch.cuda` the product calls, noted instead of done: which device, which stream.

Owns the notes; computes nothing. Invariant: each thread has a current device and a current stream
of its own, as in CUDA.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


class Stream:
    """One of the streams that were made, by number; 0 is the default one."""

    def __init__(self, cuda: "FakeCuda", device: object) -> None:
        self.number = len(cuda.streams)
        self.device = device
        cuda.streams.append(self)

    def wait_stream(self, other: "Stream") -> None:
        """Nothing is computed, so there is nothing to wait for."""


class Graph:
    def replay(self) -> None:
        """Nothing was captured."""


class FakeCuda:
    """Replaces functions of `torch.cuda` for one test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.streams: list[Stream] = []
        self.captures: list[tuple[Graph, object, Stream | None]] = []
        self.devices: dict[str, list[torch.device]] = {}
        self._local = threading.local()
        Stream(self, None)
        for name, replacement in {
            "Stream": lambda device=None: Stream(self, device),
            "current_stream": lambda device=None: self.current,  # noqa: ARG005
            "stream": self._stream,
            "graph": self._graph,
            "CUDAGraph": Graph,
            "graph_pool_handle": lambda: "pool",
            "set_device": self._set_device,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, replacement)

    @property
    def current(self) -> Stream:
        """The calling thread's stream."""
        return getattr(self._local, "stream", self.streams[0])

    @property
    def device(self) -> torch.device | None:
        """The calling thread's device, None if it never chose one."""
        return getattr(self._local, "device", None)

    def _set_device(self, device: torch.device) -> None:
        self._local.device = torch.device(device)
        self.devices.setdefault(threading.current_thread().name, []).append(self._local.device)

    @contextmanager
    def _stream(self, stream: Stream) -> Iterator[None]:
        before, self._local.stream = self.current, stream
        try:
            yield
        finally:
            self._local.stream = before

    @contextmanager
    def _graph(
        self, graph: Graph, *, pool: object, capture_error_mode: str, stream: Stream | None = None
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "other threads use the device meanwhile"
        self.captures.append((graph, pool, stream))
        with self._stream(stream or Stream(self, None)):
            yield
