"""Stop strings, hold-back and the end of an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_core.engine.events import SampledToken
from janus_core.engine.request import SamplingParams, TextRequest
from janus_core.engine.text_output import StopStrings, TextOutput

EOS = 0


class Letters:
    """Token `n` is the `n`th letter; 99 is half a character, 98 its other half, 97 a space."""

    def __init__(self) -> None:
        self.half = False

    def push(self, token_id: int) -> str:
        if token_id == 99:
            self.half = True
            return ""
        if token_id == 98 and self.half:
            self.half = False
            return "\N{SNOWMAN}"
        return " " if token_id == 97 else chr(96 + token_id)

    def flush(self) -> str:
        return "\N{REPLACEMENT CHARACTER}" if self.half else ""


def answer(ids: list[int], **fields) -> tuple[str, list[int], str | None, int]:
    """Text, reported ids, reason, and how many tokens were needed."""
    defaults = {"max_tokens": 100, "sampling": SamplingParams(seed=0)}
    request = TextRequest(id="r", token_ids=(1,), **(defaults | fields))
    output = TextOutput(request, Letters(), eos_id=EOS)
    text, reported = "", []
    for number, token_id in enumerate(ids, start=1):
        delta, reason = output.push(SampledToken(token_id))
        if delta is not None:
            text += delta.text
            reported += [token.token_id for token in delta.tokens]
        if reason is not None:
            return text, reported, reason, number
    return text, reported, None, len(ids)


def test_eos_ends_the_answer_and_is_not_text() -> None:
    assert answer([1, 2, EOS]) == ("ab", [1, 2], "stop", 3)


def test_the_limit_ends_the_answer() -> None:
    assert answer([1, 2, 3], max_tokens=2) == ("ab", [1, 2], "length", 2)


def test_eos_at_the_limit_is_a_stop() -> None:
    assert answer([1, EOS], max_tokens=2) == ("a", [1], "stop", 2)


def test_ignored_eos_goes_on_without_text() -> None:
    assert answer([1, EOS, 2], ignore_eos=True, max_tokens=3) == ("ab", [1, 2], "length", 3)


def test_a_stop_id_ends_the_answer() -> None:
    assert answer([1, 7, 2], stop_token_ids=(7,)) == ("a", [1], "stop", 2)
    assert answer([1, 7, 2], stop_token_ids=(7,), include_stop=True) == ("ag", [1, 7], "stop", 2)


def test_half_a_character_is_flushed_at_the_end() -> None:
    assert answer([1, 99, 98], max_tokens=3)[0] == "a\N{SNOWMAN}"
    assert answer([1, 99], max_tokens=2)[0] == "a\N{REPLACEMENT CHARACTER}"


def test_only_the_start_is_stripped() -> None:
    ids = [97, 97, 1, 97, 2, EOS]
    assert answer(ids, strip_start=True) == ("a b", ids[:-1], "stop", 6)
    assert answer(ids)[0] == "  a b"


def test_a_stop_string_over_several_tokens_never_shows() -> None:
    assert answer([1, 2, 3, 4, 5], stop=("cd",)) == ("ab", [1, 2, 3, 4], "stop", 4)
    assert answer([1, 2, 3, 4, 5], stop=("cd",), include_stop=True)[0] == "abcd"


def test_what_only_looked_like_a_stop_comes_later() -> None:
    assert answer([3, 5, 3], stop=("cd",), max_tokens=3) == ("cec", [3, 5, 3], "length", 3)


def test_stop_strings_count_from_min_tokens_on() -> None:
    assert answer([1, 2, 1], stop=("a",), min_tokens=3) == ("ab", [1, 2, 1], "stop", 3)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [(("b", "abc"), "a"), (("abc", "bc"), ""), (("cd", "d"), "ab"), (("xyz",), "abcde")],
)
def test_the_stop_that_ends_first_counts(stops: tuple[str, ...], expected: str) -> None:
    strings = StopStrings(stops, include_stop=False)
    text, matched = strings.push("abcde")
    assert text + ("" if matched else strings.flush()) == expected


def twin(text: str, stops: list[str], include_stop: bool) -> tuple[str, bool]:
    """Character by character over the whole text."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end if include_stop else end - max(map(len, ended))], True
    return text, False


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.booleans(),
)
def test_stops_do_not_depend_on_how_text_is_cut(
    pieces: list[str], stops: list[str], include_stop: bool
) -> None:
    strings = StopStrings(tuple(stops), include_stop=include_stop)
    released, matched = "", False
    for piece in pieces:
        text, matched = strings.push(piece)
        released += text
        assert include_stop or not any(stop in released for stop in stops)
        if matched:
            break
    if not matched:
        released += strings.flush()
    assert (released, matched) == twin("".join(pieces), stops, include_stop)
