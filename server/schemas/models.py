"""`GET /v1/models`, `/version`, `/load` and the health endpoints.

Owns their shapes; knows nothing about how the values come about. Invariant: a client that only
knows OpenAI's four keys of a model finds them.
"""

from typing import Literal

from server.schemas.common import Reply


class Architecture(Reply):
    """What goes in and what comes out."""

    input_modalities: list[str]
    output_modalities: list[str]


class TextDefaults(Reply):
    """What an answer is sampled with where the client does not say."""

    temperature: float
    top_p: float


class PictureDefaults(Reply):
    """What a picture is drawn with where the client does not say."""

    guidance_scale: float
    temperature: float
    top_p: float


class Defaults(Reply):
    """Of both kinds of request."""

    text: TextDefaults
    picture: PictureDefaults


class Limits(Reply):
    """What this server takes at most, so that a client need not find out by being refused."""

    max_choices: int
    max_pictures: int
    max_partial_images: int
    max_images_per_request: int
    max_image_bytes: int
    max_image_pixels: int


class PictureGeometry(Reply):
    """What the model draws: `size` in pixels, `num_codes` in rows of `codes_per_row`."""

    size: str
    num_codes: int
    codes_per_row: int


class ModelCard(Reply):
    """A model. `root` is the name it is served under if `id` is an alias."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    architecture: Architecture
    picture: PictureGeometry
    defaults: Defaults
    limits: Limits


class ModelList(Reply):
    """All names that `model` may have, aliases of the image endpoint left out."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(Reply):
    """`status` is `ok`, or the reason why not."""

    status: str


class Load(Reply):
    """How busy the server is. `status` is that of `/health`, though the answer is always 200;
    `server_load`, vLLM's name, is the sum of running and waiting.

    The seconds are the estimates for a picture that is asked for now, null before the first step.
    """

    status: str
    server_load: int
    num_requests_running: int
    num_requests_waiting: int
    image_queue_wait_s: float | None
    image_eta_s: float | None


class Version(Reply):
    """What runs here."""

    version: str
    model: str
    device: str
    dtype: str
    number_formats: str
    attention_backend: str
    threads: str
