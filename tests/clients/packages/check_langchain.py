"""LangChain's ChatOpenAI, over both of OpenAI's APIs."""

import asyncio
from typing import Literal

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from served import API, MODEL, question


class Answer(BaseModel):
    """What is in the picture."""

    color: Literal["red", "green", "blue"]
    is_round: bool


def made(*, use_responses_api: bool) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=API,
        api_key="none",
        model=MODEL,
        max_retries=0,
        max_tokens=100,
        use_responses_api=use_responses_api,
    )


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def chat(request: pytest.FixtureRequest) -> ChatOpenAI:
    return made(use_responses_api=request.param)


MESSAGES = [HumanMessage(content=question()[0]["content"])]


def check_invoke(chat: ChatOpenAI):
    reply = chat.invoke(MESSAGES)
    assert "red" in reply.text
    assert reply.usage_metadata["output_tokens"] > 0


def check_a_system_message(chat: ChatOpenAI):
    assert chat.invoke([SystemMessage("Answer the question."), *MESSAGES]).text


def check_stream(chat: ChatOpenAI):
    chunks = list(chat.stream(MESSAGES))
    assert len(chunks) > 1
    assert "red" in "".join(chunk.text for chunk in chunks)


def check_batch(chat: ChatOpenAI):
    replies = chat.batch([MESSAGES, MESSAGES])
    assert replies[0].text == replies[1].text


def check_asynchronously():
    """In one event loop: all its models with one address share a connection pool."""

    async def run() -> list[str]:
        chats = [made(use_responses_api=flag) for flag in (False, True)]
        return [(await chat.ainvoke(MESSAGES)).text for chat in chats]

    assert all("red" in text for text in asyncio.run(run()))


def check_structured_output(chat: ChatOpenAI):
    assert isinstance(chat.with_structured_output(Answer).invoke(MESSAGES), Answer)
