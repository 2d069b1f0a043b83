"""t6client against the real t6d."""

import asyncio
import hashlib
import threading
import time

import pytest
from conftest import ANSWERS, PATIENCE, SYSTEM, TestDaemon
from t6client import (
    NO_RETRY,
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    CancelledError,
    Client,
    DeadlineExceededError,
    NotFoundError,
    RateLimitError,
    Retry,
    UnavailableError,
    system,
    user,
)

ENDLESS = {"temperature": 0, "max_tokens": 16000, "ignore_eos": True}
RUNNING = "vllm:num_requests_running"
ABORTED = "vllm:request_success_total", 'finished_reason="abort"'
REFUSED = "t6:requests_total", 'code="RESOURCE_EXHAUSTED"'


def conversation(question):
    return [system(SYSTEM), user(question)]


def test_answers_and_reuses_the_document(daemon, ask):
    cached = []
    for question, expected in ANSWERS.items():
        answer = ask(daemon.grpc, lambda client: client.chat(conversation(question), temperature=0))
        assert answer.text.strip() == expected and answer.choices[0].finish_reason == "stop"
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        cached.append(answer.usage.cached_tokens)
    assert min(cached[1:]) > 30


def test_a_stream_is_the_whole_answer_in_pieces(daemon, ask):
    talk = conversation("Who founded the museum?")
    whole = ask(daemon.grpc, lambda client: client.chat(talk, temperature=0))
    chunks = ask.chunks(daemon.grpc, lambda client: client.stream_chat(talk, temperature=0))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and chunks[-1].choice is None
    assert chunks[-2].choice.finish_reason == "stop"


def test_a_stream_gathers_text_and_usage(daemon):
    with Client(daemon.grpc) as client, client.stream_chat(conversation("Who founded the museum?")) as stream:
        pieces = [chunk.text for chunk in stream]
        assert stream.text == "".join(pieces) and stream.usage.prompt_tokens > 30


def test_completions_of_texts_and_ids(daemon, ask):
    tokens = ask(daemon.grpc, lambda client: client.tokenize("Tickets cost"))
    assert len(tokens) == len(tokens.ids) and tokens.max_model_len == 16384
    assert ask(daemon.grpc, lambda client: client.detokenize(tokens.ids)) == "Tickets cost"
    answer = ask(daemon.grpc, lambda client: client.complete(
        ["Tickets cost", tokens.ids], temperature=0, max_tokens=6, ignore_eos=True, logprobs=2, return_token_ids=True))
    text, ids = answer.choices
    assert text.text == ids.text and text.token_ids == ids.token_ids and len(ids.token_ids) == 6
    assert [len(token.top) for token in text.logprobs] == [2] * 6 and text.finish_reason == "length"
    assert text.prompt_token_ids == tokens.ids
    alone = ask(daemon.grpc, lambda client: client.complete(tokens.ids, temperature=0, max_tokens=6, ignore_eos=True))
    assert alone.text == text.text
    echoed = ask(daemon.grpc, lambda client: client.complete("Tickets cost", max_tokens=1, echo=True, logprobs=0))
    assert echoed.text.startswith("Tickets cost")
    assert [token.logprob is None for token in echoed.choices[0].logprobs] == [True] + [False] * len(tokens)


def test_stop_and_seed(daemon, ask):
    def complete(**more):
        return ask(daemon.grpc, lambda client: client.complete("The history of", max_tokens=12, ignore_eos=True, **more))

    first = complete(temperature=1.0, seed=7).text
    assert first == complete(temperature=1.0, seed=7).text != complete(temperature=1.0, seed=8).text
    plain = complete(temperature=0).text
    stopped = complete(temperature=0, stop=plain[4:7]).choices[0]
    assert plain.startswith(stopped.text) and stopped.stop_reason == plain[4:7] and stopped.finish_reason == "stop"


def test_streams_of_several_prompts_are_told_apart(daemon, ask):
    prompts = ["The history of", "Tickets cost"]
    settings = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    whole = ask(daemon.grpc, lambda client: client.complete(prompts, **settings))
    chunks = ask.chunks(daemon.grpc, lambda client: client.stream_complete(prompts, **settings))
    for choice in whole.choices:
        pieces = [chunk.text for chunk in chunks if chunk.choice and chunk.choice.index == choice.index]
        assert "".join(pieces) == choice.text


def test_models_tokens_of_messages_and_health(daemon, ask):
    (model,) = ask(daemon.grpc, lambda client: client.models())
    assert (model.max_model_len, model.vocab_size, model.variant) == (16384, 8192, "T6")
    assert ask(daemon.grpc, lambda client: client.model(model.id)) == model
    talk = conversation("Who?")
    count = len(ask(daemon.grpc, lambda client: client.tokenize(messages=talk)))
    assert count == ask(daemon.grpc, lambda client: client.chat(talk, model=model.id, max_tokens=1)).usage.prompt_tokens
    assert ask(daemon.grpc, lambda client: client.is_serving()) is True
    assert ask(daemon.grpc, lambda client: client.is_serving("t6.v1.Chat")) is True
    with pytest.raises(NotFoundError):
        ask(daemon.grpc, lambda client: client.is_serving("t6.v1.Nothing"))


def test_errors_name_the_field_and_the_value(daemon, ask):
    with pytest.raises(BadRequestError, match="-1") as error:
        ask(daemon.grpc, lambda client: client.chat(conversation("Who?"), temperature=-1, request_id="mine"))
    assert (error.value.param, error.value.request_id, error.value.retry_after) == ("temperature", "mine", None)
    with pytest.raises(BadRequestError, match="wizard") as error:
        ask.chunks(daemon.grpc, lambda client: client.stream_chat([{"role": "wizard", "content": "x"}]))
    assert error.value.param == "messages[0].role"
    with pytest.raises(NotFoundError, match="no-such-model"):
        ask(daemon.grpc, lambda client: client.chat(conversation("Who?"), model="no-such-model"))


@pytest.mark.parametrize("wrong", [{"temprature": 1}, {"temperature": "hot"}, {"max_tokens": 1.5}, {"stop": 5}], ids=str)
def test_wrong_arguments_never_leave(daemon, ask, wrong):
    with pytest.raises(TypeError, match=next(iter(wrong)) if "temprature" in wrong else "."):
        ask(daemon.grpc, lambda client: client.chat(conversation("Who?"), **wrong))


def test_deadline(daemon, ask):
    calls = (lambda timeout: ask(daemon.grpc, lambda client: client.complete("The", timeout=timeout, **ENDLESS)),
             lambda timeout: ask.chunks(daemon.grpc, lambda client: client.stream_complete("The", **ENDLESS), timeout=timeout))
    for call in calls:
        aborted, timeout = daemon.metric(*ABORTED), 0.3
        while daemon.metric(*ABORTED) == aborted:  # twice as long each time, until the request runs when its time is over
            with pytest.raises(DeadlineExceededError):
                call(timeout)
            daemon.wait_for_metric(RUNNING, 0)
            timeout *= 2


def test_leaving_a_stream_cancels_it(daemon):
    with daemon.aborts(), Client(daemon.grpc) as client:
        with client.stream_complete("The", **ENDLESS) as stream:
            next(stream)
            daemon.wait_for_metric(RUNNING, 1)
        with pytest.raises(CancelledError):
            list(stream)


def test_another_thread_may_cancel(daemon):
    with daemon.aborts(), Client(daemon.grpc) as client:
        stream = client.stream_complete("The", **ENDLESS)
        next(stream)
        timer = threading.Timer(0.1, stream.cancel)
        timer.start()
        with pytest.raises(CancelledError):
            list(stream)
        timer.join()


def test_cancelling_a_task_cancels_its_call(daemon):
    async def run():
        async with AsyncClient(daemon.grpc) as client:
            async def read():
                async for _ in client.stream_complete("The", **ENDLESS):
                    started.set()

            for call in (lambda: client.complete("The", **ENDLESS), read):
                started = asyncio.Event()
                aborted = daemon.metric(*ABORTED)
                task = asyncio.create_task(call())
                await asyncio.to_thread(daemon.wait_for_metric, RUNNING, 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await asyncio.to_thread(daemon.wait_for_metric, ABORTED[0], aborted + 1, ABORTED[1])
                await asyncio.to_thread(daemon.wait_for_metric, RUNNING, 0)

    asyncio.run(run())


def test_many_calls_at_once(daemon):
    async def run():
        async with AsyncClient(daemon.grpc) as client:
            questions = list(ANSWERS) * 8
            answers = await asyncio.gather(
                *(client.chat(conversation(question), temperature=0) for question in questions))
            assert [answer.text.strip() for answer in answers] == [ANSWERS[question] for question in questions]

    asyncio.run(run())


def test_a_full_server_is_asked_again_when_it_said(ask):
    """The real server's RESOURCE_EXHAUSTED: it carries the hint, and gRPC's retries see it."""
    flags = "--max-num-seqs", "1", "--max-queued-requests", "1", "--max-context", "16384"
    # Channels that are configured alike share a connection, and gRPC holds a call back that would be one stream more on
    # it than the server runs and queues: so the two streams that fill the server have a connection each.
    with TestDaemon(*flags) as full, Client(full.grpc) as client, Client(full.grpc, retry=NO_RETRY) as other:
        running = client.stream_complete("The", **ENDLESS)
        next(running)
        waiting = other.stream_complete("A", **ENDLESS)
        full.wait_for_metric("vllm:num_requests_waiting", 1)
        with pytest.raises(RateLimitError) as error:
            ask(full.grpc, lambda client: client.complete("The", max_tokens=1), retry=NO_RETRY)
        assert error.value.retry_after >= 0.1
        full.wait_for_metric(REFUSED[0], 1, REFUSED[1])

        def make_room():
            while full.metric(*REFUSED) < 2:  # the first attempt's
                time.sleep(0.01)
            running.cancel()
            waiting.cancel()

        room = threading.Thread(target=make_room)
        room.start()
        started = time.monotonic()
        answer = ask(full.grpc, lambda client: client.complete("The", max_tokens=1), retry=Retry(max_attempts=5))
        assert answer.usage.completion_tokens == 1 and time.monotonic() - started >= error.value.retry_after
        room.join()


def test_a_draining_server_says_unavailable(ask):
    with TestDaemon("--max-context", "16384") as draining, Client(draining.grpc) as client:
        with client.stream_complete("The", **ENDLESS) as running:
            next(running)
            draining.process.terminate()
            deadline = time.monotonic() + PATIENCE
            with pytest.raises(UnavailableError) as error:
                while time.monotonic() < deadline:
                    client.complete("The", max_tokens=1)
            assert "shutting down" in str(error.value) and error.value.retry_after is not None


def test_api_keys(ask, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"museum sha256:{hashlib.sha256(b'open-sesame').hexdigest()}\n")
    with TestDaemon("--api-key-file", keys) as guarded:
        for key in (None, "wrong"):
            with pytest.raises(AuthenticationError):
                ask(guarded.grpc, lambda client: client.complete("The", max_tokens=1), api_key=key)
        assert ask(guarded.grpc, lambda client: client.complete("The", max_tokens=1), api_key="open-sesame").text
