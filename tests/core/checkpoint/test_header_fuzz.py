"""Whatever stands in the header of a weights file, loading ends with our error, or loads it all."""

import json
import shutil
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_core.checkpoint import load_model
from janus_core.errors import CheckpointError

CPU = torch.device("cpu")
NAME = "lm_head.weight"


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose weights are rewritten by every test."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("fuzz") / "model"))


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> tuple[dict, bytes]:
    """The header of a good file, and its tensors."""
    data = (tiny_checkpoint / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _refused(checkpoint: Path, data: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint, device=CPU, dtype=torch.float32)
    assert "\n" not in caught.value.message


def _file(header: object, tensors: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


BROKEN_ENTRIES = (
    {"data_offsets": [-1, 10]},
    {"data_offsets": [10, 0]},
    {"data_offsets": [0, 2**63]},
    {"data_offsets": [0, 2**64]},
    {"data_offsets": [0]},
    {"data_offsets": "all"},
    {"dtype": "F64"},
    {"dtype": "F1"},
    {"dtype": 32},
    {"dtype": "I32"},
    {"shape": [-1, 48]},
    {"shape": [2**32, 2**32]},
    {"shape": [320, 48.5]},
    {"shape": []},
    {"shape": None},
)


@pytest.mark.parametrize("changed", BROKEN_ENTRIES)
def test_an_entry_that_means_nothing_is_refused(checkpoint: Path, parts, changed: dict) -> None:
    header, tensors = parts
    _refused(checkpoint, _file(header | {NAME: header[NAME] | changed}, tensors))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{" * 50_000,
        b'{"a":' * 50_000,
        b'{"__metadata__": {"format": 1}}',
        b"\xff\xfe{}",
        b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_is_none_is_refused(checkpoint: Path, parts, header: bytes) -> None:
    _refused(checkpoint, _file(header, parts[1]))


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**62, 2**63, 2**64 - 1])
def test_a_length_that_lies_is_refused(checkpoint: Path, parts, size: int) -> None:
    header, tensors = parts
    _refused(checkpoint, struct.pack("<Q", size) + _file(header, tensors)[8:])


def test_a_name_given_twice_is_refused(checkpoint: Path, parts) -> None:
    """The second time with the numbers of another tensor of its size."""
    header, tensors = parts
    same = [name for name, entry in header.items() if entry.get("shape") == [48, 48]]
    entry = json.dumps({same[0]: header[same[1]]})[1:-1]
    _refused(checkpoint, _file(json.dumps(header)[:-1].encode() + f",{entry}}}".encode(), tensors))


@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bytes_of_the_header_do_no_harm(checkpoint: Path, parts, data) -> None:
    """A flip may go unnoticed, as in a metadata text; then everything must have been loaded."""
    header, tensors = parts
    text = bytearray(json.dumps(header).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    (checkpoint / "model.safetensors").write_bytes(_file(bytes(text), tensors))
    with suppress(CheckpointError):
        model = load_model(checkpoint, device=CPU, dtype=torch.float32)
        assert not any(parameter.is_meta for parameter in model.parameters())
