"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio
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


class AsyncStream(AsyncIterator[Chunk]):
    """An answer that comes in pieces. Iterate over it once; leaving the `async with` block early, or cancelling the task
    that iterates, cancels it on the server.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._iterator = call.__aiter__()
        self._pieces: list[str] = []
        self.usage: Usage | None = None
        """Once the stream has ended."""

    @property
    def text(self) -> str:
        """What has come until now, of all choices together."""
        return "".join(self._pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        try:
            chunk = wire.chunk(await self._iterator.__anext__())
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        self._pieces.append(chunk.text)
        if chunk.usage is not None:
            self.usage = chunk.usage
        return chunk

    def cancel(self) -> None:
        """The server stops computing within one step."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncClient:
    """`Client` for asyncio: the same methods and arguments, to be awaited. Belongs to the event loop it is used in;
    cancelling a task cancels its call on the server.
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
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )

    async def chat(self, messages: Messages, **params: Unpack[ChatParams]) -> Answer:
        """Answers a conversation, through the model's chat template."""
        reply = await self._unary(wire.CHAT, wire.chat_request(messages, params), params)
        return wire.answer(reply)

    def stream_chat(self, messages: Messages, **params: Unpack[ChatParams]) -> AsyncStream:
        """chat() in pieces."""
        return self._stream(wire.STREAM_CHAT, wire.chat_request(messages, params), params)

    async def complete(self, prompt: Prompts, **params: Unpack[CompletionParams]) -> Answer:
        """Continues a prompt, or several at once: a choice for each."""
        reply = await self._unary(wire.COMPLETE, wire.completion_request(prompt, params), params)
        return wire.answer(reply)

    def stream_complete(self, prompt: Prompts, **params: Unpack[CompletionParams]) -> AsyncStream:
        """complete() in pieces; those of several prompts are interleaved."""
        return self._stream(wire.STREAM_COMPLETE, wire.completion_request(prompt, params), params)

    async def models(self, **params: Unpack[CallParams]) -> tuple[Model, ...]:
        reply = await self._unary(wire.LIST_MODELS, models_pb2.ListModelsRequest(), params)
        return tuple(wire.model(model) for model in reply.models)

    async def model(self, id: str, **params: Unpack[CallParams]) -> Model:
        return wire.model(await self._unary(wire.GET_MODEL, models_pb2.GetModelRequest(id=id), params))

    async def tokenize(
        self, prompt: str | None = None, *, messages: Messages | None = None, **params: Unpack[TokenizeParams]
    ) -> Tokens:
        """Token ids of a text, or of messages as the chat template renders them."""
        return wire.tokens(await self._unary(wire.TOKENIZE, wire.tokenize_request(prompt, messages, params), params))

    async def detokenize(self, tokens: Iterable[int], model: str = "", **params: Unpack[CallParams]) -> str:
        request = tokenizer_pb2.DetokenizeRequest(model=model, tokens=tokens)
        return (await self._unary(wire.DETOKENIZE, request, params)).prompt

    async def is_serving(self, service: str = "", **params: Unpack[CallParams]) -> bool:
        """Whether the server, or one of its services ("t6.v1.Chat"), takes requests."""
        request = health_pb2.HealthCheckRequest(service=service)
        return wire.is_serving(await self._unary(wire.CHECK_HEALTH, request, params))

    async def close(self) -> None:
        """Cancels what still runs."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _unary(self, method: wire.Method[Request, Reply], request: Request, params: Any) -> Reply:
        call = self._channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
        try:
            return await call(request, **self._settings.call(params))
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    def _stream(self, method: wire.Method[Request, Reply], request: Request, params: Any) -> AsyncStream:
        call = self._channel.unary_stream(method.path, method.request.SerializeToString, method.reply.FromString)
        return AsyncStream(call(request, **self._settings.call(params)))
