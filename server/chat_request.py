"""From the body of a chat completion to turns, and to what the client chose.

Owns the reading of messages (roles, parts, images) and the choice between an answer in text and a
picture; knows no prompt format. Invariant: every part keeps the field it came in.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from janus_core.engine.request import Constraint
from janus_core.errors import ParameterError
from janus_core.pipeline import TextOptions
from server.conversation import ROLES, ImageSource, Turn, check_num_images
from server.errors import unsupported
from server.schemas.chat import ChatRequest
from server.schemas.images import ImageGenerationRequest
from server.schemas.messages import ChatMessage, ContentPart
from server.schemas.sampling import TextSampling
from server.settings import Settings
from server.structured import chat_constraint

MAX_ID_DIGITS = 10
_DRAWING_FIELDS = (
    *("temperature", "top_k", "top_p", "min_p", "negative_prompt", "size", "output_format"),
    *("guidance_scale", "cfg_weight", "cfg_scale"),
)
"""Fields that mean the same here and for an image generation."""

_TOOL_ROLES = ("tool", "function")
_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image_url", "input_image")


def turns_of(body: ChatRequest, settings: Settings) -> list[Turn]:
    """The conversation. Refuses what is over the settings' limits, before anything is decoded."""
    if not body.wants_picture and (body.n or 1) > settings.max_choices:
        raise ParameterError(
            f"n is {body.n}, but this server allows at most {settings.max_choices}.", param="n"
        )
    turns = list(_turns(body.messages))
    check_num_images(turns, limit=settings.max_images_per_request, param="messages")
    return turns


def text_options(body: ChatRequest) -> TextOptions:
    """What the client chose about an answer in text."""
    options = sampling_options(
        body,
        max_tokens=body.token_limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=chat_constraint(body),
    )
    return replace(
        options,
        n=body.n or 1,
        continue_final=bool(body.continue_final_message),
        add_generation_prompt=body.add_generation_prompt is not False,
    )


def sampling_options(
    body: TextSampling,
    *,
    max_tokens: int | None = None,
    logprobs: int | None = None,
    constraint: Constraint | None = None,
) -> TextOptions:
    """The sampling fields all endpoints share, and what each says in its own way. A null is a
    default, as OpenAI has it."""
    return TextOptions(
        seed=body.seed,
        max_tokens=max_tokens,
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
        logprobs=logprobs,
        constraint=constraint,
        bad_words=tuple(body.bad_words or ()),
    )


def drawing_body(body: ChatRequest) -> ImageGenerationRequest:
    """What the client chose about an answer that is a picture; the prompt is in the messages."""
    fields = {
        "n": body.n or 1,
        "seed": None if body.seed is None else [body.seed],
        "response_format": "b64_json",
        **{name: getattr(body, name) for name in _DRAWING_FIELDS},
    }
    # Its fields have been checked as fields of `body`.
    return ImageGenerationRequest.model_construct(prompt="", **fields)


def parts_of(
    content: Sequence[ContentPart], path: str, *, url_field: str = "image_url.url"
) -> tuple[str | ImageSource, ...]:
    """Texts and images of a message; `path` is where its content stands in the body, `url_field`
    where the URL stands in a part."""
    return tuple(
        _part(part, f"{path}.{index}", url_field=url_field) for index, part in enumerate(content)
    )


def _turns(messages: Sequence[ChatMessage]) -> Iterator[Turn]:
    for index, message in enumerate(messages):
        turn = _turn(message, f"messages.{index}")
        if any(turn.parts) or message.role not in _TOOL_ROLES:  # a tool may return nothing
            yield turn


def _turn(message: ChatMessage, path: str) -> Turn:
    images = tuple(
        ImageSource(f"{path}.images.{index}.image_url.url", image.image_url.url)
        for index, image in enumerate(message.images or ())
    )
    parts = parts_of(message.content or (), f"{path}.content")
    return Turn(ROLES[message.role], parts + images, f"{path}.content")


def _part(part: ContentPart, path: str, *, url_field: str) -> str | ImageSource:
    if part.type in _TEXT_TYPES:
        if part.text is None:
            raise ParameterError("A text part needs a text.", param=f"{path}.text")
        return part.text
    if part.type == "refusal":
        return part.refusal or ""
    if part.type in _IMAGE_TYPES:
        if part.image_url is None:
            raise ParameterError("An image part needs an image_url.", param=f"{path}.image_url")
        return ImageSource(f"{path}.{url_field}", part.image_url.url)
    raise unsupported(f"{path}.type", "Only parts of type text and image_url are supported.")


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
