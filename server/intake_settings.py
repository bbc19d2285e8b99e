"""The settings of what comes in: connections, requests, bodies, images, and what they may cost.

Owns names, ranges, defaults; `server.settings` says where values come from. Invariant: whatever a
client can make large, long or many has its limit here or in a schema.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings

from server.fetch_policy import parse_domains, parse_networks

MIB = 2**20

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


def _domains(text: str) -> str:
    parse_domains(text)
    return text


def _networks(text: str) -> str:
    parse_networks(text)
    return text


class ConnectionSettings(BaseSettings):
    """Connections and the heads of requests."""

    max_connections: Positive = Field(
        1000,
        description="Open connections; more are answered with 503 at once, unless they are probes. "
        "Fewer where the process may not have so many files.",
    )
    keep_alive_s: Annotated[int, Field(ge=1, le=3600)] = Field(
        30, description="How long an idle connection stays open."
    )
    max_header_bytes: Annotated[int, Field(ge=1024, le=MIB)] = Field(
        32 * 2**10, description="Largest head of a request: its first line and header fields."
    )
    max_headers: Annotated[int, Field(ge=8, le=10_000)] = Field(
        100, description="Most header fields of a request."
    )
    header_timeout_s: Seconds = Field(
        10.0, description="How long a request's head may take; a silent connection is closed."
    )
    write_timeout_s: Seconds = Field(
        30.0,
        description="A client that reads its answer more slowly than min_bytes_per_s for this long "
        "is dropped.",
    )
    min_bytes_per_s: Positive = Field(
        1024, description="Slowest rate to send a body or to read an answer at."
    )


class BodySettings(BaseSettings):
    """Bodies, before anything in them is looked at."""

    max_body_bytes: Positive = Field(64 * MIB, description="Largest request body.")
    max_held_bytes: Positive = Field(
        512 * MIB,
        description="Memory for the bodies of all requests being received or answered; beyond it "
        "new ones are refused with 503.",
    )
    body_timeout_s: Seconds = Field(
        30.0,
        description="How long a body may take. Every min_bytes_per_s received give a second back, "
        "but never more than this is left.",
    )
    max_chunks: Positive = Field(2**16, description="Most chunks of a chunked body.")
    max_json_depth: Annotated[int, Field(ge=8, le=150)] = Field(
        32, description="Most lists and objects within each other in a body."
    )
    max_json_values: Positive = Field(
        2**17, description="Most values in a body; every one becomes an object."
    )
    max_form_parts: Positive = Field(256, description="Most fields and files of a form.")
    max_form_field_bytes: Positive = Field(
        MIB, description="Longest field of a form that is no file."
    )
    max_text_bytes: Positive = Field(
        256 * 2**10, description="Most text of a request, before it is tokenised."
    )


class ImageSettings(BaseSettings):
    """Input images, and where they may come from."""

    max_images_per_request: Positive = Field(16, description="Most input images of one request.")
    max_image_bytes: Positive = Field(10 * MIB, description="Largest encoded input image.")
    max_image_pixels: Positive = Field(
        25_000_000, description="Most pixels of an input image, looked up before it is decoded."
    )
    max_webp_pixels: Positive = Field(
        16_000_000, description="Most pixels of a WebP, which takes more memory than the others."
    )
    max_image_side_px: Positive = Field(16_384, description="Longest side of an input image.")
    decode_workers: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="Processes that decode input images; they start when they are needed."
    )
    decode_timeout_s: Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)] = Field(
        5.0,
        description="CPU time an input image may take to decode; twice that by the clock.",
    )
    decode_memory_bytes: Annotated[int, Field(ge=16 * MIB)] = Field(
        768 * MIB, description="Memory one input image may take to decode."
    )
    media_urls: Literal["off", "https", "http"] = Field(
        "off",
        description="Fetch images that clients name by address: off, https only, or http as well.",
    )
    allowed_media_domains: Annotated[str, AfterValidator(_domains)] | None = Field(
        None,
        description="Hosts to fetch images from, separated by commas; *.example.com is all below "
        "example.com. Default: any.",
    )
    allowed_media_networks: Annotated[str, AfterValidator(_networks)] | None = Field(
        None,
        description="Networks to fetch images from although they are not public, such as "
        "10.1.2.0/24, separated by commas.",
    )
    media_url_timeout_s: Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)] = Field(
        10.0, description="How long fetching one image may take, redirects included."
    )
    max_media_redirects: Annotated[int, Field(ge=0, le=20)] = Field(
        3, description="Most redirects on the way to an image; each is checked like an address."
    )
    max_fetches: Annotated[int, Field(ge=1, le=1000)] = Field(
        32, description="Images fetched at once; each may hold max_image_bytes. More wait."
    )
    max_fetches_per_request: Annotated[int, Field(ge=1, le=1000)] = Field(
        4, description="Of these, for one request."
    )


class IntakeSettings(ConnectionSettings, BodySettings, ImageSettings):
    """All of them."""
