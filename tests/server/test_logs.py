"""Lines of the log: whoever writes a message or an exception's text writes no line of their own."""

import json
import logging
import re
import sys

import pytest

from server.logs import INDENT, MAX_LINE_CHARS, JsonFormatter, TextFormatter

FAKE = "2026-01-01 00:00:00 ERROR server.app: forged"
BREAKS = ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
EVIL = f"evil{f'{FAKE}'.join(BREAKS)}{FAKE}\x1b[2J\x00\u202e"
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ERROR server\.test: message$")


def raised(error: BaseException) -> logging.LogRecord:
    """A record with `error` and the one it was raised from."""
    try:
        try:
            raise KeyError(EVIL)
        except KeyError as cause:
            raise error from cause
    except type(error):
        info = sys.exc_info()
    return logging.LogRecord("server.test", logging.ERROR, __file__, 1, "message", (), info)


def errors() -> list[BaseException]:
    noted = ValueError("x")
    noted.add_note(EVIL)
    group = ExceptionGroup(EVIL, [OSError(EVIL), RuntimeError(EVIL)])
    return [ValueError(EVIL), noted, group, SyntaxError(EVIL, ("a", 1, 1, EVIL))]


@pytest.mark.parametrize("error", errors(), ids=["message", "note", "group", "syntax"])
def test_an_exceptions_text_begins_no_line(error: BaseException) -> None:
    text = TextFormatter().format(raised(error))
    first, *lines = text.splitlines()
    assert LINE.match(first)
    assert len(lines) > 5
    assert all(line.startswith(INDENT) for line in lines)
    assert all(character.isprintable() for character in text if character != "\n")
    assert "forged" in text
    # The traceback's own lines are there, one by one.
    assert f"{INDENT}Traceback (most recent call last):" in text or isinstance(
        error, ExceptionGroup
    )
    assert any(line.strip().startswith("File ") and "in raised" in line for line in lines)
    assert len(JsonFormatter().format(raised(error)).splitlines()) == 1


def test_a_long_text_is_cut() -> None:
    text = TextFormatter().format(raised(ValueError("x" * 10**6)))
    assert len(text) < 2 * MAX_LINE_CHARS
    assert json.loads(JsonFormatter().format(raised(ValueError("x"))))["traceback"]
