"""Who is asked again, when, and who is not: against a server that does what a script says."""

import json
import time

import grpc
import pytest
from conftest import PATIENCE
from fake_server import FakeServer, Refuse
from t6client import (
    NO_RETRY,
    SERVICE_CONFIG,
    BadRequestError,
    Client,
    DeadlineExceededError,
    RateLimitError,
    Retry,
    UnavailableError,
    user,
)

UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
HELLO = [user("Hello")]


def chat(client):
    return client.chat(HELLO)


def stream(client):
    return client.stream_chat(HELLO)


@pytest.mark.parametrize("code", [UNAVAILABLE, EXHAUSTED], ids=lambda code: code.name)
def test_the_servers_hint_is_respected(ask, code):
    with FakeServer(Refuse(code, pushback="400"), Refuse(code, pushback="150")) as server:
        assert ask(server.target, chat, retry=Retry(max_attempts=3)).text == "yes"
        assert len(server.seen) == 3
        assert server.gaps[0] >= 0.39 and server.gaps[1] >= 0.14  # own backoff: up to 0.1 s, then 0.2 s


def test_a_stream_that_has_not_begun_is_retried(ask):
    with FakeServer(Refuse(EXHAUSTED, pushback="10")) as server:
        assert "".join(chunk.text for chunk in ask.chunks(server.target, stream)) == "yesyes"
        assert len(server.seen) == 2


def test_never_after_a_token(ask):
    with FakeServer(Refuse(pushback="10", chunks=1)) as server:
        seen = []
        with pytest.raises(UnavailableError):
            ask.chunks(server.target, stream, seen)
        assert [chunk.text for chunk in seen] == ["yes"] and len(server.seen) == 1


@pytest.mark.parametrize("pushback", ["-1", "soon", "", "1.5", "99999999999999999999"])
def test_a_negative_or_unreadable_hint_forbids(ask, pushback):
    with FakeServer(Refuse(EXHAUSTED, pushback=pushback)) as server:
        with pytest.raises(RateLimitError):
            ask(server.target, chat)
        assert len(server.seen) == 1


def test_without_a_hint_the_clients_own_backoff(ask):
    with FakeServer(Refuse(), Refuse()) as server:
        assert ask(server.target, chat, retry=Retry(3, initial_backoff=0.2, max_backoff=0.2)).text == "yes"
        assert len(server.seen) == 3


def test_attempts_are_bounded_and_the_error_keeps_the_hint(ask):
    with FakeServer(*[Refuse(EXHAUSTED, pushback="20")] * 9) as server:
        with pytest.raises(RateLimitError, match="as the script says") as error:
            ask(server.target, chat, retry=Retry(max_attempts=3))
        assert len(server.seen) == 3 and error.value.retry_after == 0.02 and error.value.code == EXHAUSTED


def test_one_replay_unless_more_are_asked_for(ask):
    with FakeServer(*[Refuse(pushback="1")] * 9) as server:
        with pytest.raises(UnavailableError):
            ask(server.target, chat)
        assert len(server.seen) == 2


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED],
                         ids=lambda code: code.name)
def test_other_errors_are_final(ask, code):
    with FakeServer(Refuse(code, pushback="1")) as server:
        with pytest.raises(BadRequestError if code == grpc.StatusCode.INVALID_ARGUMENT else Exception):
            ask(server.target, chat)
        assert len(server.seen) == 1


def test_no_retry(ask):
    with FakeServer(Refuse(pushback="1")) as server:
        with pytest.raises(UnavailableError):
            ask(server.target, chat, retry=NO_RETRY)
        assert len(server.seen) == 1


def test_the_deadline_holds_all_attempts_together(ask):
    timeout, n_seen = 0.4, 0
    while n_seen == 0:  # twice as long each time, until an attempt is made before it is over
        with FakeServer(Refuse(pushback="3600000")) as server:
            started = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                ask(server.target, lambda client: client.chat(HELLO, timeout=timeout))
            assert time.monotonic() - started > 0.9 * timeout
        n_seen, timeout = len(server.seen), 2 * timeout
    assert n_seen == 1


def test_a_long_document_is_retried_too(ask):
    document = user("word " * 300_000)
    with FakeServer(Refuse(pushback="10")) as server:
        assert ask(server.target, lambda client: client.chat([document])).text == "yes"
        assert [len(seen.request.messages[0].content) for seen in server.seen] == [1_500_000] * 2


def test_what_the_server_can_never_take_is_not_sent_twice(ask):
    with FakeServer() as server:
        with pytest.raises(RateLimitError, match="larger than max"):
            ask(server.target, lambda client: client.chat([user("x" * (17 << 20))], timeout=PATIENCE),
                retry=Retry(initial_backoff=3600, max_backoff=3600))
        assert server.seen == []


def test_a_server_that_comes_late_is_waited_for(ask):
    target = "127.0.0.1:1"
    with pytest.raises(UnavailableError):
        ask(target, chat)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask(target, lambda client: client.chat(HELLO, wait_for_ready=True, timeout=1))
    assert time.monotonic() - started > 0.9


def test_metadata(ask):
    with FakeServer(Refuse(pushback="1")) as server:
        ask(server.target, lambda client: client.chat(HELLO, affinity="museum", request_id="r-1"), api_key="secret")
        ask(server.target, chat, affinity="archive")
        for seen in server.seen[:2]:
            assert seen.metadata["authorization"] == "Bearer secret"
            assert (seen.metadata["x-t6-context"], seen.metadata["x-request-id"]) == ("museum", "r-1")
            assert seen.metadata["user-agent"].startswith("t6client/0.1.0")
        assert server.seen[2].metadata["x-t6-context"] == "archive"
        assert not {"authorization", "x-request-id"} & server.seen[2].metadata.keys()


@pytest.mark.parametrize("settings", [{"api_key": "two words"}, {"api_key": "clé"}, {"affinity": "a\nb"}, {"affinity": ""}])
def test_metadata_must_be_visible_ascii(ask, settings):
    with FakeServer() as server:
        with pytest.raises(ValueError, match=next(iter(settings))) as error:
            ask(server.target, chat, **settings)
        assert server.seen == [] and "two words" not in str(error.value)


def test_no_key_in_a_traceback():
    """Tools that report errors print local variables, and what they hold."""
    with Client("127.0.0.1:1", api_key="open-sesame") as client:
        assert "open-sesame" not in repr(client) + repr(vars(client))


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"max_attempts": 6}, {"initial_backoff": 0}, {"max_backoff": 0.01}])
def test_retry_settings_are_checked(wrong):
    with pytest.raises(ValueError):
        Retry(**wrong)


def test_the_service_config_for_others():
    """Any gRPC client retries as this one does when it is given the file that ships."""
    from t6.v1 import chat_pb2, chat_pb2_grpc

    assert json.loads(SERVICE_CONFIG) == json.loads(Retry().service_config())
    with FakeServer(Refuse(EXHAUSTED, pushback="300")) as server:
        with grpc.insecure_channel(server.target, [("grpc.service_config", SERVICE_CONFIG)]) as channel:
            reply = chat_pb2_grpc.ChatStub(channel).CreateCompletion(chat_pb2.ChatCompletionRequest())
        assert reply.choices[0].message.content == "yes" and server.gaps[0] >= 0.29
