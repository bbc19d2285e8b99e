"""Conversations and captions to the token ids the model was trained on.

Owns the prompt format of the family: roles, separators, the default system prompt, the place of
images. Knows no pixels: a part that is not text is an image, whatever it is. Control tokens are
placed by id, so text can never become one, and there are as many runs of placeholders as there are
image parts, by construction.

The format is that of `deepseek-ai/Janus` (`janus/utils/conversation.py`, template "deepseek") with
the whitespace rules of the chat template that comes with the transformers layout. For conversations
that alternate between user and assistant the two agree, and so do we. Beyond that:

  - Separators follow the role: a user's turn ends with a blank line, an assistant's with EOS. (The
    original goes by the parity of the message's index, which swaps them after two messages of one
    role.)
  - The messages of role system or developer, wherever they stand, replace the default system
    prompt; an empty one means none.
  - A last assistant message is answered by a new one, or continued if asked for (no EOS then).
  - The assistant's opening can be left out; the models were not trained to go on from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from janus_core.config import ModelConfig
from janus_core.errors import ContextLengthError, ParameterError, PromptError
from janus_core.strict_json import Section, read_object
from janus_core.tokenizer import Tokenizer

PROCESSOR_FILE = "processor_config.json"

DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

MAX_TEXT_BYTES = 2**18
"""Text of one request, several times what fills the context of the largest models: encoding takes a
fifth of a second."""

Role = Literal["system", "user", "assistant"]
ImageT = TypeVar("ImageT")


@dataclass(frozen=True, slots=True)
class Message(Generic[ImageT]):
    """One turn: text (`str`) and images (anything else), in order."""

    role: Role
    parts: tuple[str | ImageT, ...]


@dataclass(frozen=True, slots=True)
class UnderstandingPrompt(Generic[ImageT]):
    """Token ids, and the images with the prompt position of each one's first placeholder,
    ascending."""

    token_ids: tuple[int, ...]
    images: tuple[tuple[int, ImageT], ...]


@dataclass(frozen=True, slots=True)
class GenerationPrompt:
    """A conditional and an unconditional prompt of the same length."""

    token_ids: tuple[int, ...]
    uncond_token_ids: tuple[int, ...]


class PromptBuilder:
    """Builds prompts for one checkpoint."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        *,
        default_system_prompt: str = DEFAULT_SYSTEM_PROMPT,
        max_text_bytes: int = MAX_TEXT_BYTES,
    ) -> None:
        self._tokenizer = tokenizer
        self._user = tokenizer.piece(tokenizer.user_role)
        self._assistant = tokenizer.piece(tokenizer.assistant_role)
        self._num_image_tokens = config.vision.num_image_tokens
        self._max_positions = config.backbone.max_positions
        self._default_system_prompt = default_system_prompt
        self._max_text_bytes = max_text_bytes

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        tokenizer: Tokenizer,
        config: ModelConfig,
        max_text_bytes: int = MAX_TEXT_BYTES,
    ) -> "PromptBuilder":
        """Obey the checkpoint's `processor_config.json`, where there is one.

        Raises CheckpointError if it contradicts the geometry of the model.
        """
        made = config.vision.num_image_tokens
        path = directory / PROCESSOR_FILE
        settings = read_object(path) if path.is_file() else Section(str(path), {})
        settings.only("num_image_tokens", made, default=made)
        wanted = settings.flag("use_default_system_prompt", default=True)
        return cls(
            tokenizer,
            config,
            default_system_prompt=DEFAULT_SYSTEM_PROMPT if wanted else "",
            max_text_bytes=max_text_bytes,
        )

    def understanding(
        self,
        messages: Sequence[Message[ImageT]],
        *,
        continue_final: bool = False,
        add_generation_prompt: bool = True,
    ) -> UnderstandingPrompt[ImageT]:
        """The prompt of a conversation, up to where the assistant speaks.

        With `continue_final` the last message, of the assistant, is left open and the answer goes
        on from it. Without `add_generation_prompt` the prompt ends after the last message. Raises
        PromptError for an empty conversation or user message, ParameterError for images outside
        user messages, ContextLengthError for text that cannot fit however it is encoded; each names
        its message.
        """
        self._check(messages, continue_final)
        pieces: list[int | str] = [self._tokenizer.bos_id]
        images: list[ImageT] = []
        if system := self._system_prompt(messages):
            pieces.append(f"{system}\n\n")
        turns = [message for message in messages if message.role != "system"]
        for index, message in enumerate(turns):
            last = index == len(turns) - 1
            if message.role == "user":
                pieces += (self._user, ": ", *self._content(message.parts, images), "\n\n")
            elif last and continue_final:
                pieces += (self._assistant, ": ", _joined(message.parts).lstrip())
            elif text := _joined(message.parts).strip():
                pieces += (self._assistant, ": ", text, self._tokenizer.eos_id)
        if add_generation_prompt and not continue_final:
            pieces += (self._assistant, ":")
        token_ids = tuple(self._tokenizer.encode_pieces(pieces))
        return UnderstandingPrompt(
            token_ids, tuple(zip(self._firsts(token_ids), images, strict=True))
        )

    def generation(self, prompt: str, *, negative_prompt: str | None = None) -> GenerationPrompt:
        """The pair of prompts of a picture.

        Unconditional is BOS, pads, `<begin_of_image>` (`generation_inference.py`: pads are
        attended). A negative prompt takes the place of the last pads; what exceeds the length of
        the prompt is cut off its end. Raises PromptError for an empty prompt, ContextLengthError as
        `understanding`.
        """
        text = prompt.strip()
        if not text:
            raise PromptError("The prompt is empty.", param="prompt")
        self._check_length([text], "prompt")
        token_ids = self._caption_ids(text)
        room = len(token_ids) - 2
        fill: list[int] = []
        if negative_prompt is not None and (negative := negative_prompt.strip()):
            self._check_length([negative], "negative_prompt")
            fill = self._fitted(self._caption_ids(negative)[1:-1], room)
        uncond = [self._tokenizer.bos_id, *[self._tokenizer.pad_id] * (room - len(fill)), *fill]
        uncond.append(self._tokenizer.begin_of_image_id)
        return GenerationPrompt(tuple(token_ids), tuple(uncond))

    def _caption_ids(self, text: str) -> list[int]:
        """BOS, the user's turn, the assistant's opening, `<begin_of_image>`; no system prompt."""
        tokenizer = self._tokenizer
        return tokenizer.encode_pieces(
            (
                tokenizer.bos_id,
                self._user,
                f": {text}\n\n",
                self._assistant,
                ":",
                tokenizer.begin_of_image_id,
            )
        )

    def _fitted(self, ids: list[int], room: int) -> list[int]:
        """At most `room` of the ids: text is lost from its end, the assistant's opening stays."""
        if len(ids) <= room:
            return ids
        opening = self._tokenizer.encode_pieces((self._assistant, ":"))
        return ids[: room - len(opening)] + opening

    def _system_prompt(self, messages: Sequence[Message[ImageT]]) -> str:
        """The client's, blank lines between several; the default if there is none at all."""
        given = [_joined(message.parts).strip() for message in messages if message.role == "system"]
        return "\n\n".join(filter(None, given)) if given else self._default_system_prompt

    def _content(self, parts: Sequence[str | ImageT], images: list[ImageT]) -> list[int | str]:
        """The pieces of a user's turn; its images are appended to `images`.

        A line break parts an image from its neighbour and a space parts two texts.
        """
        kept = [part for part in parts if not isinstance(part, str) or part.strip()]
        pieces: list[int | str] = []
        for index, part in enumerate(kept):
            first, last = index == 0, index == len(kept) - 1
            after_text = not first and isinstance(kept[index - 1], str)
            if isinstance(part, str):
                text = part.lstrip() if first else part
                pieces += (" " if after_text else "", text.rstrip() if last else text)
                continue
            images.append(part)
            pieces += (
                "\n" if after_text else "",
                self._tokenizer.begin_of_image_id,
                *[self._tokenizer.image_placeholder_id] * self._num_image_tokens,
                self._tokenizer.end_of_image_id,
                "" if last else "\n",
            )
        return pieces

    def _firsts(self, token_ids: Sequence[int]) -> list[int]:
        """Positions at which a run of placeholders begins: right behind each `<begin_of_image>`."""
        opening = self._tokenizer.begin_of_image_id
        return [position + 1 for position, id in enumerate(token_ids) if id == opening]

    def _check(self, messages: Sequence[Message[ImageT]], continue_final: bool) -> None:
        if not any(message.role != "system" for message in messages):
            raise PromptError("The conversation is empty: no user message.", param="messages")
        for index, message in enumerate(messages):
            param = f"messages.{index}.content"
            has_images = any(not isinstance(part, str) for part in message.parts)
            if has_images and message.role != "user":
                raise ParameterError(
                    f"Message {index} has role {message.role} and an image: "
                    "only user messages can hold images.",
                    param=param,
                )
            text = _joined(message.parts)
            if message.role == "user" and not has_images and not text.strip():
                raise PromptError(f"Message {index}, of the user, is empty.", param=param)
            self._check_length([text], param)
        # Each of a thousand messages may be short enough by itself.
        self._check_length([_joined(m.parts) for m in messages], "messages")
        if continue_final and (
            messages[-1].role != "assistant" or not _joined(messages[-1].parts).strip()
        ):
            raise ParameterError(
                "continue_final_message needs a last message of the assistant that is not empty.",
                param="continue_final_message",
            )

    def _check_length(self, texts: Sequence[str], param: str) -> None:
        """Refuse texts that exceed the context even in the longest tokens there are, or the bytes
        one request may have.

        Done before encoding, so that a huge text costs nothing.
        """
        limit = self._max_positions * self._tokenizer.max_token_bytes
        if (num_chars := sum(map(len, texts))) > limit:
            raise ContextLengthError(
                f"{param} has {num_chars} characters, which cannot fit the model's context of "
                f"{self._max_positions} tokens.",
                param=param,
            )
        num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if num_bytes > self._max_text_bytes:
            raise ParameterError(
                f"{param} has {num_bytes} bytes; the limit is {self._max_text_bytes}.",
                param=param,
                code="string_above_max_length",
            )


def _joined(parts: Sequence[object]) -> str:
    """The text of a message, its parts parted by a space."""
    return " ".join(part for part in parts if isinstance(part, str))
