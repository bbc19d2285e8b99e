"""A network that goes wrong, between a client and a server: a TCP proxy in a thread.

Owns the connections of both sides; knows no HTTP. Invariant: until the fault, every byte arrives,
in order.
"""

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER without waiting: closing sends RST."""


@dataclass(frozen=True, slots=True)
class Toxics:
    """What happens on the way: after so many bytes of the request or of the response, both sides
    are reset, or nothing goes on (`blackhole`); segments hold `segment_bytes`."""

    reset_request_at: int | None = None
    reset_response_at: int | None = None
    blackhole_request_at: int | None = None
    blackhole_response_at: int | None = None
    segment_bytes: int = 65_536


class ToxicProxy:
    """Listens on a port of its own while the block runs and passes on to `port` of the loopback."""

    def __init__(self, port: int, toxics: Toxics) -> None:
        self._target = port
        self._toxics = toxics
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "ToxicProxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listener = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        listener.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        toxics = self._toxics
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for each in (writer, far_writer):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        requests = self._pump(
            reader, far_writer, toxics.reset_request_at, toxics.blackhole_request_at
        )
        responses = self._pump(
            far_reader, writer, toxics.reset_response_at, toxics.blackhole_response_at
        )
        pumps = [asyncio.ensure_future(each) for each in (requests, responses)]
        try:
            with suppress(ConnectionError):
                await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            for each in (writer, far_writer):
                each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                each.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        reset_at: int | None,
        blackhole_at: int | None,
    ) -> None:
        """Raises ConnectionResetError at the byte where that is to happen, and never returns from
        a hole. The end of one direction is passed on, and is no end of the other."""
        num_passed = 0
        marks = [mark for mark in (reset_at, blackhole_at) if mark is not None]
        while True:
            left = min((mark - num_passed for mark in marks), default=self._toxics.segment_bytes)
            if left <= 0 and reset_at is not None:
                raise ConnectionResetError
            if left <= 0:
                await asyncio.Event().wait()
            data = await reader.read(min(left, self._toxics.segment_bytes))
            if not data:
                with suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            num_passed += len(data)
