"""A server of names for tests in a network of their own: it counts who asks for what.

Owns one UDP socket; knows no attack. Invariant: what is not listed does not exist.
"""

import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address

A, AAAA = 1, 28
NO_SUCH_NAME = 3


class NameServer:
    """`answers[name]` has the addresses of each look-up, one list after the other; the last one
    stays. A look-up for each family is counted in `asked`."""

    def __init__(self, answers: dict[str, list[list[str]]]) -> None:
        self.answers = answers
        self.asked: Counter[tuple[str, int]] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                query, client = self._socket.recvfrom(4096)
                self._socket.sendto(self._reply(query), client)

    def _reply(self, query: bytes) -> bytes:
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name = ".".join(labels).lower()
        (kind,) = struct.unpack_from(">H", query, at + 1)
        question = query[12 : at + 5]
        lists = self.answers.get(name)
        addresses = lists[min(self.asked[name, kind], len(lists) - 1)] if lists else []
        self.asked[name, kind] += 1
        packed = [ip_address(address).packed for address in addresses]
        records = [p for p in packed if len(p) == {A: 4, AAAA: 16}.get(kind)]
        flags = 0x8180 if lists else 0x8180 | NO_SUCH_NAME
        head = query[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
        # A pointer to the name in the question, and a lifetime of nothing.
        return (
            head
            + question
            + b"".join(
                struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(packed)) + packed
                for packed in records
            )
        )
