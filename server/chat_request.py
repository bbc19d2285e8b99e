"""From the body of a chat completion to requests for the engine.

Owns the reading of messages (roles, parts, images) and the limits the settings give; knows no
prompt format. Invariant: an error names the field as the client wrote it, however deep it stands.
"""

import uuid
from collections.abc import Mapping

from janus_core.engine.request import TextRequest
from janus_core.errors import ParameterError
from janus_core.images import PreparedImage
from janus_core.pipeline import Pipeline, TextOptions
from janus_core.prompt import Message, Role
from server.errors import unsupported
from server.media import bytes_of_url
from server.schemas.chat import ChatRequest, ContentPart
from server.settings import Settings

_ROLES: dict[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    # Results of tools are something the model is told, and it knows no third speaker.
    "tool": "user",
    "function": "user",
}
MAX_ID_DIGITS = 10
_TEXT_TYPES = ("text", "input_text")
_IMAGE_TYPES = ("image_url", "input_image")


def check_limits(body: ChatRequest, settings: Settings) -> None:
    """Refuse what is over the settings' limits, before anything is decoded."""
    if (body.n or 1) > settings.max_choices:
        raise ParameterError(
            f"n is {body.n}, but this server allows at most {settings.max_choices}.", param="n"
        )
    parts = [part for message in body.messages for part in message.content or ()]
    num_images = sum(part.type in _IMAGE_TYPES for part in parts)
    if num_images > settings.max_images_per_request:
        raise ParameterError(
            f"The messages have {num_images} images, but this server allows at most "
            f"{settings.max_images_per_request}.",
            param="messages",
        )


def build_text_requests(body: ChatRequest, *, pipeline: Pipeline) -> list[TextRequest]:
    """The `n` requests of a chat completion. Decodes and tokenises: not for the event loop."""
    messages = [
        Message(
            _ROLES[message.role],
            tuple(
                _read_part(part, f"messages.{i}.content.{j}", pipeline=pipeline)
                for j, part in enumerate(message.content or ())
            ),
        )
        for i, message in enumerate(body.messages)
    ]
    return pipeline.text_requests(messages, _options(body), request_id=uuid.uuid4().hex)


def _read_part(part: ContentPart, path: str, *, pipeline: Pipeline) -> str | PreparedImage:
    """Text or an image, ready for the prompt; `path` is where the part stands in the body."""
    if part.type in _TEXT_TYPES:
        if part.text is None:
            raise ParameterError("A text part needs a text.", param=f"{path}.text")
        return part.text
    if part.type in _IMAGE_TYPES:
        if part.image_url is None:
            raise ParameterError("An image part needs an image_url.", param=f"{path}.image_url")
        param = f"{path}.image_url.url"
        data = bytes_of_url(part.image_url.url, param=param, max_bytes=pipeline.limits.max_bytes)
        return pipeline.prepare_image(data, param=param)
    raise unsupported(f"{path}.type", "Only parts of type text and image_url are supported.")


def _options(body: ChatRequest) -> TextOptions:
    """What the client chose. A null is a default, as OpenAI has it."""
    return TextOptions(
        n=body.n or 1,
        seed=body.seed,
        max_tokens=body.token_limit,
        min_tokens=body.min_tokens or 0,
        temperature=body.temperature,
        top_k=max(0, body.top_k or 0),
        top_p=_given(body.top_p, 1.0),
        min_p=_given(body.min_p, 0.0),
        repetition_penalty=_given(body.repetition_penalty, 1.0),
        presence_penalty=_given(body.presence_penalty, 0.0),
        frequency_penalty=_given(body.frequency_penalty, 0.0),
        logit_bias=_biases(body.logit_bias or {}),
        stop=tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        continue_final=bool(body.continue_final_message),
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _biases(biases: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """JSON has no integer keys: OpenAI's are token ids in decimal."""
    for key in biases:
        if not (key.isascii() and key.isdecimal() and len(key) < MAX_ID_DIGITS):
            raise ParameterError(
                "The keys of logit_bias must be token ids in decimal.", param="logit_bias"
            )
    return tuple((int(key), bias) for key, bias in biases.items())
