"""The client that blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message as Proto
from grpc_health.v1 import health_pb2
from t6.v1 import models_pb2, tokenizer_pb2

from . import _wire as wire
from ._errors import from_rpc
from ._params import CallParams, ChatParams, CompletionParams, TokenizeParams
from ._settings import Retry, Settings, channel_options
from ._types import Answer, Chunk, Messages, Model, Prompts, Tokens, Usage

Request = TypeVar("Request", bound=Proto)
Reply = TypeVar("Reply", bound=Proto)


class Stream(Iterator[Chunk]):
    """An answer that comes in pieces. Iterate over it once; leaving the `with` block early cancels it on the server.

    cancel() may be called from any thread, all else from one at a time.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._pieces: list[str] = []
        self.usage: Usage | None = None
        """Once the stream has ended."""

    @property
    def text(self) -> str:
        """What has come until now, of all choices together."""
        return "".join(self._pieces)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        try:
            chunk = wire.chunk(next(self._call))
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        self._pieces.append(chunk.text)
        if chunk.usage is not None:
            self.usage = chunk.usage
        return chunk

    def cancel(self) -> None:
        """The server stops computing within one step; a thread that waits for a chunk gets CancelledError."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Client:
    """A connection to one t6d, or to a balancer before several. Connects when it is first used; thread-safe.

    target: HOST:PORT or any name that gRPC resolves. api_key: sent as `Authorization: Bearer`. affinity and timeout:
    for calls that do not say. credentials: of a server behind TLS, from grpc.ssl_channel_credentials(). Every method
    raises a T6Error when the call fails.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        affinity: str | None = None,
        timeout: float | None = None,
        retry: Retry = Retry(),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._settings = Settings(api_key, affinity, timeout)
        options = channel_options(retry)
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )

    def chat(self, messages: Messages, **params: Unpack[ChatParams]) -> Answer:
        """Answers a conversation, through the model's chat template."""
        reply = self._unary(wire.CHAT, wire.chat_request(messages, params), params)
        return wire.answer(reply)

    def stream_chat(self, messages: Messages, **params: Unpack[ChatParams]) -> Stream:
        """chat() in pieces."""
        return self._stream(wire.STREAM_CHAT, wire.chat_request(messages, params), params)

    def complete(self, prompt: Prompts, **params: Unpack[CompletionParams]) -> Answer:
        """Continues a prompt, or several at once: a choice for each."""
        reply = self._unary(wire.COMPLETE, wire.completion_request(prompt, params), params)
        return wire.answer(reply)

    def stream_complete(self, prompt: Prompts, **params: Unpack[CompletionParams]) -> Stream:
        """complete() in pieces; those of several prompts are interleaved."""
        return self._stream(wire.STREAM_COMPLETE, wire.completion_request(prompt, params), params)

    def models(self, **params: Unpack[CallParams]) -> tuple[Model, ...]:
        reply = self._unary(wire.LIST_MODELS, models_pb2.ListModelsRequest(), params)
        return tuple(wire.model(model) for model in reply.models)

    def model(self, id: str, **params: Unpack[CallParams]) -> Model:
        return wire.model(self._unary(wire.GET_MODEL, models_pb2.GetModelRequest(id=id), params))

    def tokenize(
        self, prompt: str | None = None, *, messages: Messages | None = None, **params: Unpack[TokenizeParams]
    ) -> Tokens:
        """Token ids of a text, or of messages as the chat template renders them."""
        return wire.tokens(self._unary(wire.TOKENIZE, wire.tokenize_request(prompt, messages, params), params))

    def detokenize(self, tokens: Iterable[int], model: str = "", **params: Unpack[CallParams]) -> str:
        request = tokenizer_pb2.DetokenizeRequest(model=model, tokens=tokens)
        return self._unary(wire.DETOKENIZE, request, params).prompt

    def is_serving(self, service: str = "", **params: Unpack[CallParams]) -> bool:
        """Whether the server, or one of its services ("t6.v1.Chat"), takes requests."""
        request = health_pb2.HealthCheckRequest(service=service)
        return wire.is_serving(self._unary(wire.CHECK_HEALTH, request, params))

    def close(self) -> None:
        """Cancels what still runs."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unary(self, method: wire.Method[Request, Reply], request: Request, params: Any) -> Reply:
        call = self._channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
        try:
            return call(request, **self._settings.call(params))
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    def _stream(self, method: wire.Method[Request, Reply], request: Request, params: Any) -> Stream:
        call = self._channel.unary_stream(method.path, method.request.SerializeToString, method.reply.FromString)
        return Stream(call(request, **self._settings.call(params)))
