"""gRPC with the real grpcio: calls, streams, health, reflection, deadlines, cancellation, errors."""

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from conftest import ANSWERS, FINISHED, SYSTEM

SERVICES = ["t6.v1.Chat", "t6.v1.Completions", "t6.v1.Models", "t6.v1.Tokenizer"]


@pytest.fixture(scope="module")
def channel(daemon):
    with grpc.insecure_channel(daemon.grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


@pytest.fixture(scope="module")
def chat(channel, wire):
    return wire.chat_pb2_grpc.ChatStub(channel)


@pytest.fixture(scope="module")
def completions(channel, wire):
    return wire.completions_pb2_grpc.CompletionsStub(channel)


@pytest.fixture
def question(daemon, wire):
    def make(text="Who founded the museum?", **sampling):
        pb = wire.chat_pb2
        return pb.ChatCompletionRequest(
            model=daemon.model, sampling={"temperature": 0, **sampling},
            messages=[pb.ChatMessage(role="system", content=SYSTEM), pb.ChatMessage(role="user", content=text)])
    return make


@pytest.fixture
def endless(daemon, wire):
    return wire.completions_pb2.CompletionRequest(
        model=daemon.model, prompts=[{"text": "The"}],
        sampling={"temperature": 0, "max_tokens": 16000, "ignore_eos": True})


def code_of(call):
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value


def test_unary(chat, question, wire):
    cached = []
    for text, answer in ANSWERS.items():
        got = chat.CreateCompletion(question(text))
        assert got.choices[0].message.content.strip() == answer
        assert got.choices[0].finish_reason == wire.completions_pb2.FINISH_REASON_STOP
        assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
        cached.append(got.usage.cached_tokens)
    assert min(cached[1:]) > 30


def test_stream(chat, question):
    whole = chat.CreateCompletion(question())
    chunks = list(chat.StreamCompletion(question()))
    assert "".join(c.choice.message.content for c in chunks) == whole.choices[0].message.content
    assert chunks[0].choice.message.role == "assistant"
    assert [c.HasField("usage") for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert not chunks[-1].HasField("choice")
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_and_tokenizer(completions, channel, daemon, wire):
    tokenizer = wire.tokenizer_pb2_grpc.TokenizerStub(channel)
    tokens = tokenizer.Tokenize(wire.tokenizer_pb2.TokenizeRequest(model=daemon.model, prompt="Tickets cost"))
    assert tokens.count == len(tokens.tokens)
    back = tokenizer.Detokenize(wire.tokenizer_pb2.DetokenizeRequest(model=daemon.model, tokens=tokens.tokens))
    assert back.prompt == "Tickets cost"
    request = wire.completions_pb2.CompletionRequest(
        model=daemon.model, prompts=[{"text": "Tickets cost"}, {"tokens": {"ids": tokens.tokens}}], logprobs=2,
        sampling={"temperature": 0, "max_tokens": 6, "ignore_eos": True}, return_token_ids=True)
    text, ids = completions.CreateCompletion(request).choices
    assert text.text == ids.text and list(text.token_ids) == list(ids.token_ids) and len(ids.token_ids) == 6
    assert [len(t.top) for t in text.logprobs] == [2] * 6


def test_models(channel, daemon, wire):
    models = wire.models_pb2_grpc.ModelsStub(channel)
    model = models.List(wire.models_pb2.ListModelsRequest()).models[0]
    assert (model.id, model.max_model_len, model.vocab_size) == (daemon.model, 16384, 8192)
    assert 13_000_000 < model.n_parameters < 15_000_000
    assert models.Get(wire.models_pb2.GetModelRequest(id=daemon.model)) == model
    error = code_of(lambda: models.Get(wire.models_pb2.GetModelRequest(id="other")))
    assert error.code() == grpc.StatusCode.NOT_FOUND and "other" in error.details()


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_of_each_service(channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == serving
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
    assert next(watch).status == serving
    watch.cancel()


def test_health_of_an_unknown_service(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    error = code_of(lambda: stub.Check(health_pb2.HealthCheckRequest(service="t6.v1.Nothing")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


def test_reflection(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(SERVICES) | {"grpc.health.v1.Health"} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName("t6.v1.Chat")
    assert [m.name for m in service.methods] == ["CreateCompletion", "StreamCompletion"]


def test_deadline(completions, daemon, endless):
    aborted, timeout = daemon.metric(FINISHED, finished_reason="abort"), 0.3
    # Twice as long each time, until the request runs when its time is over.
    while daemon.metric(FINISHED, finished_reason="abort") == aborted:
        error = code_of(lambda: completions.CreateCompletion(endless, timeout=timeout))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        daemon.wait_for_metric("vllm:num_requests_running", 0)
        timeout *= 2


def test_cancel(completions, daemon, endless):
    with daemon.aborts():
        call = completions.StreamCompletion(endless)
        next(call)
        daemon.wait_for_metric("vllm:num_requests_running", 1)
        call.cancel()
    daemon.wait_for_metric("vllm:kv_cache_usage_perc", 0)


def test_request_id_is_echoed(chat, question):
    _, call = chat.CreateCompletion.with_call(question(), metadata=[("x-request-id", "abc-123")])
    sent_back = [*call.initial_metadata(), *call.trailing_metadata()]
    assert ("x-request-id", "abc-123") in [(m.key, m.value) for m in sent_back]


@pytest.mark.parametrize("sampling, quoted", [
    ({"temperature": -1}, "-1"), ({"top_p": 1.5}, "1.5"), ({"max_tokens": -7}, "-7"), ({"stop": ["x"] * 17}, "17"),
    ({"stop_token_ids": [8192]}, "8192"),
], ids=str)
def test_invalid_arguments_are_quoted(chat, question, sampling, quoted):
    for call in (chat.CreateCompletion, lambda request: list(chat.StreamCompletion(request))):
        error = code_of(lambda: call(question(**sampling)))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert quoted in error.details() and next(iter(sampling)) in error.details()


def test_bad_role_and_unknown_model(chat, question):
    request = question()
    request.messages[0].role = "wizard"
    error = code_of(lambda: chat.CreateCompletion(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "wizard" in error.details()
    request = question()
    request.model = "no-such-model"
    error = code_of(lambda: chat.CreateCompletion(request))
    assert error.code() == grpc.StatusCode.NOT_FOUND and "no-such-model" in error.details()


def test_seed(chat, question):
    def draw(seed):
        request = question(temperature=1.5, max_tokens=12, ignore_eos=True)
        request.sampling.seed = seed
        return chat.CreateCompletion(request).choices[0].message.content
    assert draw(1) == draw(1) != draw(2)
