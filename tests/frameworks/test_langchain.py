"""LangChain's ChatOpenAI, given nothing but the address."""

import asyncio

import openai
import pytest
from conftest import ANSWERS, MODEL, SYSTEM
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI


@pytest.fixture
def llm(url):
    return lambda **more: ChatOpenAI(base_url=url, api_key="none", model=MODEL, max_retries=0, **more)


def talk(question):
    return [SystemMessage(SYSTEM), HumanMessage(question)]


def test_invoke_with_nothing_but_defaults(llm):
    cached = []
    for question, answer in ANSWERS.items():
        got = llm().invoke(talk(question))
        assert got.content.strip() == answer and got.response_metadata["finish_reason"] == "stop"
        cached.append(got.usage_metadata["input_token_details"]["cache_read"])
    assert min(cached[1:]) > 30


def test_what_a_chat_usually_sets(llm):
    got = llm(temperature=0, max_tokens=3, top_p=0.9, seed=3, n=1, stop=["\n"], frequency_penalty=0, presence_penalty=0,
              logprobs=True, top_logprobs=2, model_kwargs={"user": "me", "parallel_tool_calls": True}, metadata={"team": "a"},
              reasoning_effort="none", service_tier="auto", store=False, extra_body={"top_k": 5}).invoke(talk("Who founded it?"))
    assert got.usage_metadata["output_tokens"] == 3 and got.response_metadata["finish_reason"] == "length"
    assert [len(token["top_logprobs"]) for token in got.response_metadata["logprobs"]["content"]] == [2] * 3


def test_stream(llm):
    question = "Who founded the museum?"
    plain = list(llm(temperature=0).stream(talk(question)))
    assert "".join(chunk.content for chunk in plain).strip() == ANSWERS[question] and len(plain) > 2
    with_usage = list(llm(temperature=0, stream_usage=True).stream(talk(question)))
    usages = [chunk.usage_metadata for chunk in with_usage if chunk.usage_metadata]
    assert len(usages) == 1 and usages[0]["input_token_details"]["cache_read"] > 30


def test_a_conversation_goes_on_with_the_models_own_message(llm):
    first = talk("Who founded the museum?")
    answer = llm(temperature=0).invoke(first)
    assert isinstance(answer, AIMessage)
    second = llm(temperature=0).invoke([*first, answer, HumanMessage("When did the museum open?")])
    details = second.usage_metadata["input_token_details"]
    assert second.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"] and details["cache_read"] > 30


def test_batch_and_async_through_a_chain(llm):
    prompt = ChatPromptTemplate.from_messages([("system", SYSTEM), ("user", "{question}")])
    chain = prompt | llm(temperature=0) | StrOutputParser()
    questions = [{"question": question} for question in ANSWERS]
    assert [answer.strip() for answer in chain.batch(questions)] == list(ANSWERS.values())

    async def run():
        pieces = [piece async for piece in chain.astream(questions[1])]
        return await chain.abatch(questions), "".join(pieces)

    answers, streamed = asyncio.run(run())
    assert [answer.strip() for answer in answers] == list(ANSWERS.values()) and streamed == answers[1]


def test_completions(url):
    llm = OpenAI(base_url=url, api_key="none", model=MODEL, temperature=0, max_tokens=8, max_retries=0)
    text = llm.invoke("The history of the museum")
    assert text and "".join(llm.stream("The history of the museum")) == text
    assert len(llm.generate(["The history of", "Tickets cost"]).generations) == 2


@pytest.mark.parametrize("ask, field", [
    (lambda llm: llm.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}]), "tools"),
    (lambda llm: llm.with_structured_output(
        {"title": "x", "description": "d", "type": "object", "properties": {"a": {"type": "string"}}}), "response_format"),
    (lambda llm: llm.bind(n=2), "n"),
], ids=["tools", "structured output", "n"])
def test_what_is_not_supported_is_refused_by_name(llm, ask, field):
    try:
        ask(llm()).invoke("Who?")
    except openai.BadRequestError as error:
        assert error.body["param"].startswith(field) and field in error.body["message"]
    else:
        pytest.skip(f"{field} is supported now")
