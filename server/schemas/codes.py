"""Codes in and out without a drawing: `POST /v1/images/decode` and `/v1/images/encode`.

Owns the shapes of both; knows no autoencoder. Invariant: codes are in raster order, as many as the
model draws, however they are used.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from server.schemas.common import Body, Int, OneOrMore, Reply
from server.schemas.images import MAX_CODES, OutputFormat

MAX_PICTURES = 128
"""Of one request; `max_pictures` and `max_images_per_request` are usually lower."""

Codes = Annotated[list[Int], Field(max_length=MAX_CODES)]


def _nested(value: object) -> object:
    """A list of numbers as a list of one such list."""
    flat = isinstance(value, list) and value and not any(isinstance(each, list) for each in value)
    return [value] if flat else value


ListsOfCodes = Annotated[
    list[Codes],
    BeforeValidator(_nested, json_schema_input_type=list[Codes] | Codes),
    Field(min_length=1, max_length=MAX_PICTURES),
]


class DecodeRequest(Body):
    """Codes of one or more pictures. The other fields are those of an image generation."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"user", "metadata"})
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {"background": ("auto", "opaque")}

    model: str | None = None
    codes: ListsOfCodes
    size: Annotated[str, Field(max_length=32)] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[Int, Field(ge=0, le=100)] | None = None


class DecodedPicture(Reply):
    """One picture as a file in base64."""

    b64_json: str


class DecodeReply(Reply):
    """The pictures, in the order of their codes."""

    created: int
    data: list[DecodedPicture]
    output_format: OutputFormat
    size: str


class EncodeRequest(Body):
    """Images by their URLs."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"user", "metadata"})

    model: str | None = None
    images: Annotated[OneOrMore[str], Field(min_length=1, max_length=MAX_PICTURES)]


class EncodedImage(Reply):
    """The codes of one image, fitted to the native size."""

    object: Literal["image_codes"]
    index: int
    codes: list[int]


class EncodeReply(Reply):
    """The codes, in the order of the images, with the grid they form."""

    object: Literal["list"]
    data: list[EncodedImage]
    grid: int
    codebook_size: int
    model: str
