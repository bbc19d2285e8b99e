"""Input images: from a message's URL to bytes.

Owns data URLs; knows no pixels, and no http(s) URLs: `fetch` has replaced those before. Invariant:
nothing here opens a connection or a file, and a size is checked before anything of that size is
allocated.
"""

import binascii
import re

from janus_core.errors import ImageInputError

_HEADER = re.compile(r"data:(?P<type>[a-z0-9.+-]+/[a-z0-9.+-]+)?(;[a-z0-9=\"._-]+)*?;base64", re.I)
_MAX_HEADER_CHARS = 256

PIECE_CHARS = 2**18
"""Decoded at once, a multiple of 4: the decoder keeps all other threads waiting, about a
millisecond for this many characters."""


def bytes_of_url(url: str, *, param: str, max_bytes: int) -> bytes:
    """The bytes of a `data:` URL in strict base64.

    Raises ImageInputError that names `param`, with OpenAI's code for what is wrong.
    """
    scheme = url[:8].lower()
    if scheme.startswith(("http:", "https:")):
        raise _error("Fetching images from http URLs is not enabled; send a data: URL.", param)
    if not scheme.startswith("data:"):
        raise _error("The image must be a data: URL.", param)
    header, comma, payload = url[: _MAX_HEADER_CHARS + 1].partition(",")
    match = _HEADER.fullmatch(header)
    if not comma or match is None:
        raise _error("A data: URL must read data:image/...;base64,...", param)
    media_type = (match["type"] or "").lower()
    if not media_type.startswith("image/"):
        raise _error("The data: URL is not an image.", param, "unsupported_image_media_type")
    payload = url[len(header) + 1 :]
    if len(payload) * 3 // 4 - payload[-2:].count("=") > max_bytes:
        raise _error(
            f"The image exceeds the limit of {max_bytes} bytes.", param, "image_file_too_large"
        )
    try:
        data = _decoded(payload)
    except ValueError:  # binascii.Error is one; so is what a non-ASCII string raises
        raise _error("The data: URL is not valid base64.", param, "invalid_base64_image") from None
    if not data:
        raise _error("The image is empty.", param, "empty_image_file")
    return data


def _decoded(payload: str) -> bytes:
    """Bytes of strict base64, decoded piece by piece; raises ValueError. Padding ends the data."""
    pieces = []
    for first in range(0, len(payload), PIECE_CHARS):
        piece = payload[first : first + PIECE_CHARS]
        if "=" in piece and first + PIECE_CHARS < len(payload):
            raise ValueError("padding before the end")
        pieces.append(binascii.a2b_base64(piece, strict_mode=True))
    return b"".join(pieces)


def _error(message: str, param: str, code: str = "invalid_image_url") -> ImageInputError:
    return ImageInputError(message, param=param, code=code)
