"""Messages as OpenAI's endpoints share them: text and images in order, said by someone.

Owns the shapes of messages and their parts; knows no endpoint and no prompt format. Invariant: a
part is flat, so that an error names the field and not a branch of a union.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_MESSAGES = 1024
MAX_PARTS = 1024


def _url_object(value: object) -> object:
    """A bare string for `{"url": ...}`: Ollama's documentation teaches it."""
    return {"url": value} if isinstance(value, str) else value


def text_part(value: object) -> object:
    """A string is a message of one text part."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class ImageUrl(BaseModel):
    """An input image. `detail` has no effect: the tower sees every image at one size."""

    model_config = ConfigDict(frozen=True)

    url: str
    detail: str | None = None


ImageUrlField = Annotated[
    ImageUrl, BeforeValidator(_url_object, json_schema_input_type=str | ImageUrl)
]


class ContentPart(BaseModel):
    """A part of a message. `refusal` is what a model said instead of an answer: text to us."""

    model_config = ConfigDict(frozen=True)

    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrlField | None = None


Content = Annotated[
    list[ContentPart],
    Field(max_length=MAX_PARTS),
    BeforeValidator(text_part, json_schema_input_type=str | list[ContentPart]),
]


class MessageImage(BaseModel):
    """A picture of an earlier answer, as `message.images` had it."""

    model_config = ConfigDict(frozen=True)

    image_url: ImageUrlField


class ChatMessage(BaseModel):
    """One message. `developer` is `system`; `tool` and `function` results are read as user text.

    `images` are the pictures of an answer that was drawn; they count as shown by the next message
    of the user.
    """

    model_config = ConfigDict(frozen=True)

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Content | None = None
    images: Annotated[list[MessageImage], Field(max_length=MAX_PARTS)] | None = None
