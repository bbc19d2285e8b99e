"""Data URLs: strict base64, decoded in pieces as if at once."""

import base64
import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_core.errors import ImageInputError
from server import media

HEADER = "data:image/png;base64,"


def decode(payload: str, max_bytes: int = 2**20) -> bytes:
    return media.bytes_of_url(HEADER + payload, param="url", max_bytes=max_bytes)


@given(st.binary(min_size=1, max_size=100))
def test_bytes_come_back(data: bytes):
    assert decode(base64.b64encode(data).decode()) == data


@given(st.text("AZaz09+/=\n -_", min_size=1, max_size=40), st.sampled_from([4, 8, 12]))
def test_pieces_are_as_strict_as_the_whole(payload: str, piece_chars: int):
    try:
        expected = binascii.a2b_base64(payload, strict_mode=True) or None
    except binascii.Error:
        expected = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(media, "PIECE_CHARS", piece_chars)
        try:
            found = decode(payload)
        except ImageInputError:
            found = None
    assert found == expected


@pytest.mark.parametrize("num_bytes", [9, 10, 11, 12])
def test_the_limit_is_exact(num_bytes: int):
    payload = base64.b64encode(b"x" * num_bytes).decode()
    if num_bytes <= 10:
        assert decode(payload, max_bytes=10) == b"x" * num_bytes
    else:
        with pytest.raises(ImageInputError) as caught:
            decode(payload, max_bytes=10)
        assert (caught.value.code, caught.value.param) == ("image_file_too_large", "url")
