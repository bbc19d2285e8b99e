"""LlamaIndex's OpenAILike."""

import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike
from served import API, MODEL, PICTURE, QUESTION


@pytest.fixture
def llm() -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=API,
        api_key="none",
        is_chat_model=True,
        context_window=4096,
        max_tokens=64,
        max_retries=0,
    )


MESSAGE = ChatMessage(role="user", blocks=[ImageBlock(path=PICTURE), TextBlock(text=QUESTION)])


def check_chat(llm: OpenAILike):
    assert "red" in llm.chat([MESSAGE]).message.content


def check_stream(llm: OpenAILike):
    replies = list(llm.stream_chat([MESSAGE]))
    assert "red" in "".join(reply.delta or "" for reply in replies)
    assert replies[-1].message.content == "".join(reply.delta or "" for reply in replies)


def check_complete(llm: OpenAILike):
    assert llm.complete("What is a circle?").text
