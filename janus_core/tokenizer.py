"""Text to token ids and back.

Owns the byte-level BPE of a checkpoint's `tokenizer.json` and the ids of its control tokens, looked
up by their strings because they differ between checkpoints of one family. Knows no prompt format
and no model.

Invariant: encoding text never yields a control id. Whatever a client types, `<image_placeholder>`
and `<|User|>` included, is plain text; control tokens enter a prompt by id only (`encode_pieces`).
"""

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BpeTokenizer

from janus_core.errors import CheckpointError, PromptError
from janus_core.strict_json import read_object

TOKENIZER_FILE = "tokenizer.json"

LOCKED_CHARS = 4096
"""The library holds the interpreter's lock while it encodes a single text, a second for a million
characters, in which no other thread goes on. For longer texts than this it is asked for a batch of
one: it then lets go of the lock and encodes in threads of its own."""

# U+FF5C is a full-width bar, U+2581 a low block: as escapes, because they look like `|` and `_`.
BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
PAD = "<\uff5c\u2581pad\u2581\uff5c>"
BEGIN_OF_IMAGE = "<begin_of_image>"
END_OF_IMAGE = "<end_of_image>"
IMAGE_PLACEHOLDER = "<image_placeholder>"

# Janus-Pro has control tokens for the roles, Janus-1.3B writes them as plain words.
USER_ROLES = ("<|User|>", "User")
ASSISTANT_ROLES = ("<|Assistant|>", "Assistant")


class Tokenizer:
    """Encodes plain text, decodes ids, knows the control tokens. Threads can share it."""

    def __init__(self, definition: dict[str, Any]) -> None:
        """`definition` is the parsed `tokenizer.json`. Raises CheckpointError if it is no
        Janus's."""
        vocab, controls, literals = _split_vocab(definition)
        self._bpe = _text_bpe(definition, vocab, controls=controls, literals=literals)
        self._controls = controls
        self.bos_id = _control_id(controls, BOS)
        self.eos_id = _control_id(controls, EOS)
        self.pad_id = _control_id(controls, PAD)
        self.begin_of_image_id = _control_id(controls, BEGIN_OF_IMAGE)
        self.end_of_image_id = _control_id(controls, END_OF_IMAGE)
        self._token_bytes = _token_bytes(vocab, controls, literals)
        if IMAGE_PLACEHOLDER not in controls:
            # Janus-1.3B adds it when it is loaded, behind the last id (VLChatProcessor.__init__).
            controls[IMAGE_PLACEHOLDER] = len(self._token_bytes)
            self._token_bytes.append(IMAGE_PLACEHOLDER.encode())
        self.image_placeholder_id = controls[IMAGE_PLACEHOLDER]
        self.control_ids = frozenset(controls.values())
        self.num_ids = len(self._token_bytes)
        """One more than the highest id. Rows of the embedding table beyond it have no text."""
        self.max_token_bytes = max(map(len, self._token_bytes))
        self.user_role = _role(controls, USER_ROLES)
        self.assistant_role = _role(controls, ASSISTANT_ROLES)

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Read `tokenizer.json` of a checkpoint. Raises CheckpointError if it is missing or
        damaged."""
        return cls(dict(read_object(directory / TOKENIZER_FILE).values))

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text: no BOS, no control ids. Raises PromptError for unpaired surrogates."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"The text is not valid Unicode: character {error.start} is an unpaired surrogate."
            ) from None
        if len(text) <= LOCKED_CHARS:
            encoding = self._bpe.encode(text, add_special_tokens=False)
        else:
            (encoding,) = self._bpe.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def encode_pieces(self, pieces: Iterable[int | str]) -> list[int]:
        """Ids of a prompt made of control ids and plain text.

        Neighbouring texts are encoded as one, so merges across their border come out as they would
        if the whole prompt had been one string with its control tokens recognised.
        """
        ids: list[int] = []
        run: list[str] = []
        for piece in pieces:
            if isinstance(piece, str):
                run.append(piece)
                continue
            ids += self.encode_text("".join(run)) if run else ()
            run.clear()
            ids.append(piece)
        ids += self.encode_text("".join(run)) if run else ()
        return ids

    def piece(self, string: str) -> int | str:
        """The id of a control string, or the string itself where it is plain text in this
        checkpoint."""
        return self._controls.get(string, string)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, control tokens left out. Bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream()
        return "".join(map(stream.push, token_ids)) + stream.flush()

    def stream(self) -> "IncrementalDetokenizer":
        """A decoder to which ids are given one by one."""
        return IncrementalDetokenizer(self)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for, control tokens spelled out; empty for an id without text."""
        return self._token_bytes[token_id] if 0 <= token_id < self.num_ids else b""


class IncrementalDetokenizer:
    """Turns ids into text as they come; all it returned, joined, is what `Tokenizer.decode`
    returns.

    The bytes of an unfinished UTF-8 character are held back, at most three. Constant time per id.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became certain with this id, often a word, sometimes nothing."""
        if token_id in self._tokenizer.control_ids:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is held back after the last id: one U+FFFD for an unfinished character, or
        nothing."""
        return self._utf8.decode(b"", final=True)


def _split_vocab(
    definition: dict[str, Any],
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Model vocabulary, control tokens and literal tokens (each string -> id).

    Literal tokens are added tokens that are ordinary text: DeepSeek's files add the thirteen
    letters whose byte-level spelling is no byte of UTF-8 (`ü`, `ö`, `ø`, ...). They take part in
    encoding, control tokens do not.
    """
    model = definition.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{TOKENIZER_FILE} does not describe a byte-level BPE.")
    controls: dict[str, int] = {}
    literals: dict[str, int] = {}
    for token in definition.get("added_tokens", ()):
        string: str = token["content"]
        bracketed = string.startswith("<") and string.endswith(">")
        (controls if token["special"] or bracketed else literals)[string] = token["id"]
    return dict(model["vocab"]), controls, literals


def _text_bpe(
    definition: dict[str, Any],
    vocab: dict[str, int],
    *,
    controls: dict[str, int],
    literals: dict[str, int],
) -> BpeTokenizer:
    """The tokenizer of plain text: no control tokens to recognise, no template that adds BOS.

    `encode_special_tokens` of the library would not do: it leaves non-special added tokens in
    place, and a checkpoint may list its image tokens as such. Literal tokens join the vocabulary,
    because the library numbers added tokens anew unless the vocabulary has them; no merge leads
    there.
    """
    added = definition.get("added_tokens", ())
    text_vocab = {token: id for token, id in vocab.items() if token not in controls} | literals
    plain = definition | {
        "added_tokens": [token for token in added if token["content"] in literals],
        "model": definition["model"] | {"vocab": text_vocab, "unk_token": None},
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    try:
        return BpeTokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the library raises plain Exception for whatever it dislikes
        raise CheckpointError(f"{TOKENIZER_FILE} cannot be used: {error}") from error


def _control_id(controls: dict[str, int], string: str) -> int:
    if string not in controls:
        raise CheckpointError(
            f"{TOKENIZER_FILE} has no token {string}: it does not belong to a Janus model."
        )
    return controls[string]


def _role(controls: dict[str, int], candidates: tuple[str, str]) -> str:
    control, word = candidates
    return control if control in controls else word


def _token_bytes(
    vocab: dict[str, int], controls: dict[str, int], literals: dict[str, int]
) -> list[bytes]:
    """Bytes of every id up to the highest; ids that no token has are empty."""
    added = controls | literals
    table = [b""] * (1 + max([*vocab.values(), *added.values()]))
    byte_of = _byte_of_character()
    for token, token_id in vocab.items():
        if token in added:
            continue
        if not byte_of.keys() >= set(token):
            raise CheckpointError(
                f"{TOKENIZER_FILE} is not byte-level: its token {token!r} is not spelled in bytes."
            )
        table[token_id] = bytes([byte_of[character] for character in token])
    for token, token_id in added.items():
        table[token_id] = token.encode()
    return table


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE (GPT-2's `bytes_to_unicode`, encoder.py): printable bytes of
    Latin-1 stand for themselves, the other 68 for U+0100 onwards in ascending order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }
