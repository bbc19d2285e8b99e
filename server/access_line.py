"""The line that every answer leaves in the log, and the id by which it is found there.

Owns the form of both; knows no route and no socket, and imports nothing heavy. Who answers before
there is a request (a head that is none, a connection too many) uses the same. Invariant: an id is a
short plain word, whoever chose it.
"""

import logging
import re
import uuid
from collections.abc import Mapping

access_logger = logging.getLogger("server.access")

_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(given: str = "") -> str:
    """`given`, the client's, if it may be one, else a new one."""
    return given if _ACCEPTED_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def write_line(fields: Mapping[str, object], *, level: int = logging.INFO) -> None:
    """Write the line of one answer. Nothing in `fields` may be text of a client's as it came."""
    line = " ".join(f"{name}={value}" for name, value in fields.items())
    access_logger.log(level, "%s", line, extra={"fields": dict(fields)})


def write_early_line(id: str, *, status: int, code: str) -> None:
    """Write the line of an answer to what never became a request, or was cut off within one."""
    write_line({"request_id": id, "status": status, "reason": code})
