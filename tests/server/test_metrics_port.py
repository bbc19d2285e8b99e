"""The port of the metrics takes no more connections than it needs, and still answers."""

import contextlib
import re
import socket
import time
from pathlib import Path

import httpx2
import psutil

from server.listener import NUM_SPARE
from server.metrics_port import MAX_CONNECTIONS
from tests.serving import server_process, wait_until


def listens(address: tuple[str, int]) -> bool:
    """Whether somebody does; soon after the address was printed, in a loop of its own."""
    with socket.socket() as connection:
        return connection.connect_ex(address) == 0


def test_silence_takes_no_more_than_its_places(tiny_checkpoint: Path) -> None:
    with (
        server_process(str(tiny_checkpoint), "--metrics-port", "0") as (process, url, banner),
        contextlib.ExitStack() as stack,
    ):
        found = re.search(r"Metrics on (http://(\S+):(\d+))/metrics", banner)
        assert found
        address = (found[2], int(found[3]))

        def status(path: str) -> tuple[int, str | None]:
            reply = httpx2.get(found[1] + path, timeout=20)
            return reply.status_code, reply.headers.get("connection")

        wait_until(lambda: listens(address))
        num_before = psutil.Process(process.pid).num_fds()
        for _ in range(MAX_CONNECTIONS + 3 * NUM_SPARE):
            stack.enter_context(socket.create_connection(address, timeout=20))
        wait_until(lambda: status("/nothing") == (503, "close"))
        for path in ("/metrics", "/livez", "/readyz"):
            assert status(path) == (200, "close")
        num_more = psutil.Process(process.pid).num_fds() - num_before
        assert num_more <= MAX_CONNECTIONS + NUM_SPARE
        assert httpx2.get(f"{url}/version", timeout=20).status_code == 200
        text = httpx2.get(f"{found[1]}/metrics", timeout=20).text
        assert re.search(r'refused_total{.*reason="too_many_connections"} ', text)
        stack.close()
        until = time.monotonic() + 20
        while status("/livez")[1] == "close" and time.monotonic() < until:
            time.sleep(0.05)
        assert status("/livez") == (200, None)
