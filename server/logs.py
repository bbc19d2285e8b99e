"""Log format: one line per message, as text or as JSON, to stderr.

Owns the handler of the root logger; knows no message. Invariant: a message never starts a second
line unless it carries a traceback, whose lines are indented, whatever a client put into either.
"""

import json
import logging
import time
from types import TracebackType
from typing import Literal, get_args

Level = Literal["debug", "info", "warning", "error"]

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_NOISY = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "PIL", "httpx2", "urllib3")
"""Their information is in our own lines; their warnings still count."""


def configure_logging(level: str, *, style: Literal["text", "json"]) -> None:
    """Send every log message of the process to stderr in one style."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)


def set_level(level: str) -> None:
    """Log what is at least as severe from now on."""
    logging.getLogger().setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def current_level() -> Level:
    """The least severe level that is logged."""
    effective = logging.getLogger().getEffectiveLevel()
    levels: tuple[Level, ...] = get_args(Level)
    return next((name for name in levels if effective <= _number(name)), levels[-1])


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def printable(text: str, *, limit: int = 200) -> str:
    """`text` with everything escaped that could end a line or move a cursor."""
    short = text if len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


MAX_LINE_CHARS = 4000

INDENT = " " * 4
"""In front of a traceback's lines: an exception's message can have lines of its own, and only what
begins with a time is a message of ours."""


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00 INFO server.app: message`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message, limit=MAX_LINE_CHARS)
        return super().formatMessage(record)

    def formatException(self, ei: ExcInfo) -> str:
        lines = super().formatException(ei).split("\n")
        return "\n".join(INDENT + printable(line, limit=MAX_LINE_CHARS) for line in lines)


class JsonFormatter(logging.Formatter):
    """One object per message; `extra={"fields": {...}}` adds keys of its own."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            entry |= fields
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
