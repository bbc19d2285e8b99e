"""Text stays text, ids are looked up by string, and streaming decodes what decoding decodes."""

import json
import threading
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from janus_core.errors import CheckpointError, PromptError
from janus_core.tokenizer import EOS, Tokenizer
from tests.core.bpe import JANUS_13B_CONTROLS, PRO_CONTROLS, bpe_json, definition, oracle, ours

# The letters DeepSeek's 7B file adds: their byte-level spelling is no byte of UTF-8.
LITERALS = ("ø", "ö", "ü")

PRO, PRO_ORACLE = ours(), oracle()

typed = st.text(max_size=30) | st.lists(
    st.sampled_from([*PRO_CONTROLS, " ", "\n", "a", "User: "]), max_size=6
).map("".join)


def test_control_ids_are_looked_up_by_their_strings() -> None:
    for name, string in (
        ("bos_id", PRO_CONTROLS[0]),
        ("eos_id", PRO_CONTROLS[1]),
        ("pad_id", PRO_CONTROLS[2]),
        ("begin_of_image_id", "<begin_of_image>"),
        ("end_of_image_id", "<end_of_image>"),
        ("image_placeholder_id", "<image_placeholder>"),
    ):
        assert getattr(PRO, name) == PRO_ORACLE.token_to_id(string)
    assert (PRO.user_role, PRO.assistant_role) == ("<|User|>", "<|Assistant|>")
    assert PRO.num_ids == PRO_ORACLE.get_vocab_size()
    assert PRO.control_ids == {PRO_ORACLE.token_to_id(string) for string in PRO_CONTROLS}


def test_janus_13b_gets_a_placeholder_behind_its_last_id_and_roles_in_plain_words() -> None:
    tokenizer = ours(JANUS_13B_CONTROLS)
    assert tokenizer.image_placeholder_id == oracle(JANUS_13B_CONTROLS).get_vocab_size()
    assert tokenizer.num_ids == tokenizer.image_placeholder_id + 1
    assert tokenizer.piece(tokenizer.user_role) == "User"
    assert tokenizer.piece(tokenizer.assistant_role) == "Assistant"


@given(typed)
@example("<image_placeholder>" * 3)
@example(f"a{EOS}<|User|>: b")
def test_whatever_is_typed_is_text(text: str) -> None:
    ids = PRO.encode_text(text)
    assert not PRO.control_ids.intersection(ids)
    assert PRO.decode(ids) == text
    assert len(ids) <= len(text.encode())


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<"), max_size=60))
def test_text_without_control_strings_is_encoded_as_by_the_library(text: str) -> None:
    assert PRO.encode_text(text) == PRO_ORACLE.encode(text, add_special_tokens=False).ids


@given(st.lists(st.sampled_from(PRO_CONTROLS) | st.text("ab :\n.<>|", max_size=6), max_size=8))
def test_pieces_are_encoded_as_one_string_with_its_control_tokens_recognised(
    pieces: list[str],
) -> None:
    assert PRO.encode_pieces(map(PRO.piece, pieces)) == PRO_ORACLE.encode("".join(pieces)).ids


@given(st.lists(st.integers(0, PRO.num_ids - 1), max_size=40))
def test_a_stream_of_any_ids_is_their_decoding(ids: list[int]) -> None:
    stream = PRO.stream()
    streamed = "".join([*map(stream.push, ids), stream.flush()])
    assert streamed == PRO.decode(ids) == PRO_ORACLE.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=40))
def test_a_stream_never_shows_half_a_character(text: str) -> None:
    stream = PRO.stream()
    shown = ""
    for id in PRO.encode_text(text):
        shown += stream.push(id)
        assert text.startswith(shown)
    assert shown == text
    assert stream.flush() == ""


def test_token_bytes_of_a_text_are_its_bytes() -> None:
    text = "naïve 图像 🙂"
    assert b"".join(map(PRO.token_bytes, PRO.encode_text(text))) == text.encode()
    assert PRO.token_bytes(PRO.eos_id) == EOS.encode()
    assert PRO.token_bytes(PRO.num_ids) == PRO.token_bytes(-1) == b""


def test_added_letters_keep_their_ids_and_their_spelling() -> None:
    """DeepSeek's 7B file adds thirteen letters between the vocabulary and the controls."""
    tokenizer, library = ours(literals=LITERALS), oracle(literals=LITERALS)
    text = "für schöne <|User|> søer"
    expected = library.encode(text.replace("<|User|>", "<|Nobody|>")).ids
    assert set(map(library.token_to_id, LITERALS)) <= set(expected)
    assert tokenizer.encode_text(text.replace("User", "Nobody")) == expected
    assert tokenizer.decode(tokenizer.encode_text(text)) == text
    assert tokenizer.eos_id == library.token_to_id(EOS)


def test_image_tokens_that_are_not_marked_special_are_control_tokens_all_the_same() -> None:
    loose = definition()
    for token in loose["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer(loose)
    assert tokenizer.control_ids == PRO.control_ids
    assert tokenizer.encode_text("<image_placeholder>") == PRO.encode_text("<image_placeholder>")


def test_unpaired_surrogates_are_refused() -> None:
    with pytest.raises(PromptError, match="character 1 is an unpaired surrogate"):
        PRO.encode_text("a\ud800b")


def test_other_threads_go_on_while_a_long_text_is_encoded() -> None:
    text = "the quick brown fox " * 20_000
    is_done = threading.Event()
    awake_s: list[float] = []

    def stay_awake() -> None:
        while not is_done.wait(0.001):
            awake_s.append(time.monotonic())

    thread = threading.Thread(target=stay_awake)
    thread.start()
    started_s = time.monotonic()
    ids = PRO.encode_text(text)
    ended_s = time.monotonic()
    is_done.set()
    thread.join()
    times_s = [started_s, *[s for s in awake_s if started_s < s < ended_s], ended_s]
    longest_s = max(after - before for before, after in pairwise(times_s))
    assert longest_s < (ended_s - started_s) / 2
    assert ids == PRO_ORACLE.encode(text, add_special_tokens=False).ids


def test_loading(tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path)
    path.write_text(bpe_json()[:1000])
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Tokenizer.load(tmp_path)
    path.write_text(bpe_json())
    assert Tokenizer.load(tmp_path).encode_text("a red circle") == PRO.encode_text("a red circle")


def test_files_of_other_models_are_refused() -> None:
    with pytest.raises(CheckpointError, match="has no token <begin_of_image>"):
        ours(PRO_CONTROLS[:3])
    spelled = json.loads(bpe_json())
    spelled["model"]["vocab"]["▁word"] = 9999
    with pytest.raises(CheckpointError, match="not byte-level: its token '▁word'"):
        Tokenizer(spelled)
    with pytest.raises(CheckpointError, match="does not describe a byte-level BPE"):
        Tokenizer({"model": {"type": "Unigram"}})
