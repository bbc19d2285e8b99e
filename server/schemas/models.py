"""`GET /v1/models`, `/version` and the health endpoints.

Owns their shapes; knows nothing about how the values come about. Invariant: a client that only
knows OpenAI's four keys of a model finds them.
"""

from typing import Literal

from server.schemas.common import Reply


class Architecture(Reply):
    """What goes in and what comes out."""

    input_modalities: list[str]
    output_modalities: list[str]


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


class ModelList(Reply):
    """All names that `model` may have, aliases of the image endpoint left out."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(Reply):
    """`status` is `ok`, or the reason why not."""

    status: str


class Version(Reply):
    """What runs here."""

    version: str
    model: str
    device: str
    dtype: str
    number_formats: str
    attention_backend: str
    threads: str
