"""Prompts are the original's, whatever is typed stays text, and images stand where they were put.

The oracle is a string in the format of the original, encoded whole by the library with its control
tokens recognised.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_core.config import read_config
from janus_core.errors import (
    CheckpointError,
    ContextLengthError,
    ParameterError,
    PromptError,
    RequestError,
)
from janus_core.prompt import DEFAULT_SYSTEM_PROMPT, Message, PromptBuilder
from janus_core.tokenizer import EOS, PAD
from tests.core.bpe import JANUS_13B_CONTROLS, PRO_CONTROLS, oracle, ours

MINI = Path(__file__).parents[2] / "weights" / "janus-mini"
CONFIG = read_config(MINI)
NUM_IMAGE_TOKENS = CONFIG.vision.num_image_tokens
IMAGE = f"<begin_of_image>{'<image_placeholder>' * NUM_IMAGE_TOKENS}<end_of_image>"
SYSTEM = f"{DEFAULT_SYSTEM_PROMPT}\n\n"
BOS = PRO_CONTROLS[0]

PRO = ours()
BUILDER = PromptBuilder(PRO, CONFIG)

Parts = tuple[Any, ...]


def user(*parts: Any) -> Message[int]:
    return Message("user", parts)


def assistant(*parts: Any) -> Message[int]:
    return Message("assistant", parts)


def system(*parts: Any) -> Message[int]:
    return Message("system", parts)


def ids_of(prompt: str) -> tuple[int, ...]:
    return tuple(oracle().encode(BOS + prompt, add_special_tokens=False).ids)


def original(messages: list[tuple[str, str]], *, system_prompt: str = DEFAULT_SYSTEM_PROMPT) -> str:
    """`get_prompt` of deepseek's template (janus/utils/conversation.py), separators by index
    parity."""
    prompt = f"{system_prompt}\n\n" if system_prompt else ""
    for index, (role, content) in enumerate(messages):
        separator = ("\n\n", EOS)[index % 2]
        prompt += f"{role}: {content.strip()}{separator}" if content.strip() else f"{role}:"
    return prompt.strip()


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            [user("What is shown in this image?", 1)],
            f"<|User|>: What is shown in this image?\n{IMAGE}\n\n<|Assistant|>:",
        ),
        ([user(1, "Where?")], f"<|User|>: {IMAGE}\nWhere?\n\n<|Assistant|>:"),
        ([user(1)], f"<|User|>: {IMAGE}\n\n<|Assistant|>:"),
        ([user(1, 2, "Same?")], f"<|User|>: {IMAGE}\n{IMAGE}\nSame?\n\n<|Assistant|>:"),
        ([user("a", "b ", 1)], f"<|User|>: a b \n{IMAGE}\n\n<|Assistant|>:"),
        ([user(1, " ", "b\n")], f"<|User|>: {IMAGE}\nb\n\n<|Assistant|>:"),
        (
            [
                user("Compare this image", 1, "with this image", 2),
                assistant("The first is an equation, the second is a pie chart."),
                user(3, "What about this third image?"),
            ],
            f"<|User|>: Compare this image\n{IMAGE}\nwith this image\n{IMAGE}\n\n"
            "<|Assistant|>: The first is an equation, the second is a pie chart."
            f"{EOS}<|User|>: {IMAGE}\nWhat about this third image?\n\n<|Assistant|>:",
        ),
    ],
)
def test_strings_of_the_chat_template(messages: list[Message[int]], expected: str) -> None:
    prompt = BUILDER.understanding(messages)
    assert prompt.token_ids == ids_of(SYSTEM + expected)
    numbers = [part for message in messages for part in message.parts if isinstance(part, int)]
    assert [image for _, image in prompt.images] == numbers
    for first, _ in prompt.images:
        run = prompt.token_ids[first - 1 : first + NUM_IMAGE_TOKENS + 1]
        assert run[0] == PRO.begin_of_image_id
        assert set(run[1:-1]) == {PRO.image_placeholder_id}
        assert run[-1] == PRO.end_of_image_id


texts = st.text(alphabet="ab :.\n?é", min_size=1, max_size=20).filter(lambda text: text.strip())


@given(st.lists(texts, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2))
def test_alternating_conversations_are_the_originals(turns: list[str]) -> None:
    messages = [(user if index % 2 == 0 else assistant)(text) for index, text in enumerate(turns)]
    named = [(("<|User|>", "<|Assistant|>")[i % 2], text) for i, text in enumerate(turns)]
    expected = original([*named, ("<|Assistant|>", "")])
    assert BUILDER.understanding(messages).token_ids == ids_of(expected)


@given(st.lists(texts, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2))
def test_janus_13b_writes_its_roles_in_plain_words(turns: list[str]) -> None:
    builder = PromptBuilder(ours(JANUS_13B_CONTROLS), CONFIG)
    messages = [(user if index % 2 == 0 else assistant)(text) for index, text in enumerate(turns)]
    named = [(("User", "Assistant")[index % 2], text) for index, text in enumerate(turns)]
    expected = BOS + original([*named, ("Assistant", "")])
    library = oracle(JANUS_13B_CONTROLS)
    assert list(builder.understanding(messages).token_ids) == library.encode(expected).ids


def test_separators_follow_the_role() -> None:
    """Where the original goes by the message's index and would end a user's turn with EOS."""
    prompt = BUILDER.understanding([user("a"), user("b"), assistant("c"), assistant("d")])
    assert prompt.token_ids == ids_of(
        f"{SYSTEM}<|User|>: a\n\n<|User|>: b\n\n"
        f"<|Assistant|>: c{EOS}<|Assistant|>: d{EOS}<|Assistant|>:"
    )
    assert BUILDER.understanding([assistant("hi"), user("b")]).token_ids == ids_of(
        f"{SYSTEM}<|Assistant|>: hi{EOS}<|User|>: b\n\n<|Assistant|>:"
    )


def test_an_empty_assistant_message_is_the_one_to_be_written() -> None:
    assert BUILDER.understanding([user("a"), assistant("")]) == BUILDER.understanding([user("a")])


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([system(" Be brief. "), user("a")], "Be brief.\n\n"),
        ([system("")], ""),
        ([system("One."), user("a"), system("Two.")], "One.\n\nTwo.\n\n"),
    ],
)
def test_the_clients_system_prompt_replaces_the_default(
    messages: list[Message[int]], expected: str
) -> None:
    messages = messages if len(messages) > 1 else [*messages, user("a")]
    prompt = BUILDER.understanding(messages)
    assert prompt.token_ids == ids_of(f"{expected}<|User|>: a\n\n<|Assistant|>:")


def test_a_final_assistant_message_can_be_continued() -> None:
    prompt = BUILDER.understanding([user("a"), assistant(" The answer is")], continue_final=True)
    assert prompt.token_ids == ids_of(f"{SYSTEM}<|User|>: a\n\n<|Assistant|>: The answer is")
    for messages in ([user("a")], [user("a"), assistant(" ")]):
        with pytest.raises(ParameterError) as raised:
            BUILDER.understanding(messages, continue_final=True)
        assert raised.value.param == "continue_final_message"


typed = st.lists(
    st.sampled_from([*PRO_CONTROLS, " ", "\n", "a", "<image_", "placeholder>", "User: "]),
    min_size=1,
    max_size=6,
).map("".join)


@given(system_text=typed, question=typed, answer=typed, num_images=st.integers(0, 2))
def test_control_strings_typed_anywhere_are_text(
    system_text: str, question: str, answer: str, num_images: int
) -> None:
    messages = [
        system(system_text),
        user(f"{question}?", *range(num_images)),
        assistant(f"{answer}."),
        user("b"),
    ]
    prompt = BUILDER.understanding(messages)
    counts = {id: prompt.token_ids.count(id) for id in PRO.control_ids}
    assert {id: count for id, count in counts.items() if count} == {
        PRO.bos_id: 1,
        PRO.eos_id: 1,
        PRO.piece("<|User|>"): 2,
        PRO.piece("<|Assistant|>"): 2,
    } | (
        {
            PRO.begin_of_image_id: num_images,
            PRO.image_placeholder_id: num_images * NUM_IMAGE_TOKENS,
            PRO.end_of_image_id: num_images,
        }
        if num_images
        else {}
    )
    assert question.strip() in PRO.decode(prompt.token_ids)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([system("Be brief.")], "messages"),
        ([user("")], "messages.0.content"),
        ([user("a"), assistant("b"), user(" \n")], "messages.2.content"),
        ([system(1), user("a")], "messages.0.content"),
        ([user("a"), assistant("b", 1), user("c")], "messages.1.content"),
    ],
)
def test_what_cannot_be_a_conversation_is_refused_by_name(
    messages: list[Message[int]], param: str
) -> None:
    with pytest.raises(RequestError) as raised:
        BUILDER.understanding(messages)
    assert raised.value.param == param


def test_text_that_cannot_fit_is_refused_before_it_is_encoded() -> None:
    short = replace(CONFIG, backbone=replace(CONFIG.backbone, max_positions=4))
    builder = PromptBuilder(PRO, short)
    longest = 4 * PRO.max_token_bytes
    with pytest.raises(ContextLengthError, match="cannot fit the model's context of 4 tokens") as e:
        builder.understanding([user("a"), assistant("x" * (longest + 1)), user("b")])
    assert e.value.param == "messages.1.content"
    half = [user("a" * (longest // 2 + 1)), assistant("b" * (longest // 2 + 1))]
    with pytest.raises(ContextLengthError, match="cannot fit the model's context of 4 tokens") as e:
        builder.understanding([*half, user("c")])
    assert e.value.param == "messages"
    with pytest.raises(ContextLengthError):
        builder.generation("x" * (longest + 1))
    assert builder.generation("x" * longest)


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_limit_of_text_counts_bytes(excess: int) -> None:
    builder = PromptBuilder(PRO, CONFIG, max_text_bytes=9)
    text = "\u00fc" * 4 + "x" * (excess + 1)
    calls = [
        ("prompt", lambda: builder.generation(text)),
        ("negative_prompt", lambda: builder.generation("x", negative_prompt=text)),
        ("messages.0.content", lambda: builder.understanding([user(text)])),
        ("messages", lambda: builder.understanding([user(text[:2]), user(text[2:])])),
    ]
    for param, call in calls:
        if excess <= 0:
            call()
            continue
        with pytest.raises(ParameterError) as caught:
            call()
        assert (caught.value.param, caught.value.code) == (param, "string_above_max_length")


@given(st.text(alphabet="ab .\n", min_size=1, max_size=30).filter(lambda text: text.strip()))
def test_generation_is_the_original_pair(text: str) -> None:
    pair = BUILDER.generation(text)
    prompt = original([("<|User|>", text), ("<|Assistant|>", "")], system_prompt="")
    assert pair.token_ids == ids_of(f"{prompt}<begin_of_image>")
    pads = PAD * (len(pair.token_ids) - 2)
    assert pair.uncond_token_ids == ids_of(f"{pads}<begin_of_image>")


def test_control_strings_in_a_caption_are_text() -> None:
    pair = BUILDER.generation("".join(PRO_CONTROLS))
    assert pair.token_ids.count(PRO.begin_of_image_id) == 1
    assert pair.token_ids.count(PRO.pad_id) == pair.token_ids.count(PRO.eos_id) == 0


@given(texts, texts)
def test_a_negative_prompt_takes_the_place_of_the_last_pads(text: str, negative: str) -> None:
    pair = BUILDER.generation(text, negative_prompt=negative)
    alone = BUILDER.generation(negative).token_ids
    uncond = pair.uncond_token_ids
    assert len(uncond) == len(pair.token_ids)
    assert uncond[0] == PRO.bos_id
    assert uncond[-3:] == alone[-3:]
    if len(alone) <= len(uncond):
        num_pads = len(uncond) - len(alone)
        assert uncond[1:] == (PRO.pad_id,) * num_pads + alone[1:]
    else:
        assert uncond[:-3] == alone[: len(uncond) - 3]


def test_an_empty_negative_prompt_is_none_and_an_empty_prompt_an_error() -> None:
    assert BUILDER.generation("a", negative_prompt=" ") == BUILDER.generation("a")
    with pytest.raises(PromptError) as raised:
        BUILDER.generation(" \n")
    assert raised.value.param == "prompt"


def test_the_processor_file_is_obeyed_and_checked(tmp_path: Path) -> None:
    def load() -> PromptBuilder:
        return PromptBuilder.load(tmp_path, tokenizer=PRO, config=CONFIG)

    assert load().understanding([user("a")]) == BUILDER.understanding([user("a")])
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({"use_default_system_prompt": False}))
    assert load().understanding([user("a")]).token_ids == ids_of("<|User|>: a\n\n<|Assistant|>:")
    path.write_text(json.dumps({"num_image_tokens": NUM_IMAGE_TOKENS + 1}))
    with pytest.raises(CheckpointError, match="num_image_tokens"):
        load()
