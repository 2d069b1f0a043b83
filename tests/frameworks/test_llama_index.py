"""LlamaIndex's OpenAILike, given nothing but the address."""

import asyncio

import pytest
from conftest import ANSWERS, MODEL, SYSTEM
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

WHO = "Who founded the museum?"


@pytest.fixture
def llm(url):
    def make(**more):
        return OpenAILike(**{"api_base": url, "api_key": "none", "model": MODEL, "is_chat_model": True, "max_retries": 0} | more)
    return make


def talk(question):
    return [ChatMessage(role="system", content=SYSTEM), ChatMessage(role="user", content=question)]


def test_chat_with_nothing_but_defaults(llm):
    cached = []
    for question, answer in ANSWERS.items():
        got = llm().chat(talk(question))
        assert got.message.content.strip() == answer
        cached.append(got.raw.usage.prompt_tokens_details.cached_tokens)
    assert min(cached[1:]) > 30


def test_stream_chat_and_a_conversation(llm):
    pieces = list(llm().stream_chat(talk(WHO)))
    assert "".join(piece.delta for piece in pieces).strip() == ANSWERS[WHO]
    more = [*talk(WHO), pieces[-1].message, ChatMessage(role="user", content="When did the museum open?")]
    assert llm().chat(more).raw.usage.prompt_tokens_details.cached_tokens > 30


def test_async(llm):
    async def run():
        answers = await asyncio.gather(*(llm().achat(talk(question)) for question in ANSWERS))
        return [answer.message.content.strip() for answer in answers]

    assert asyncio.run(run()) == list(ANSWERS.values())


def test_completions(llm):
    completing = llm(is_chat_model=False, max_tokens=8, temperature=0, additional_kwargs={"seed": 1, "stop": ["\n\n"]})
    text = completing.complete("The history of the museum").text
    assert text and "".join(piece.delta for piece in completing.stream_complete("The history of the museum")) == text


def test_predict_as_query_engines_do(llm):
    prompt = PromptTemplate(SYSTEM + "\n\n{question}")
    assert llm(max_tokens=10).predict(prompt, question=WHO)
