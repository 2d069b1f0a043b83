"""Requests and answers on the wire: the calls of t6.v1, arguments to messages, messages to values. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message as Proto
from grpc_health.v1 import health_pb2
from t6.v1 import chat_pb2, completions_pb2, models_pb2, tokenizer_pb2

from ._params import CallParams
from ._types import (
    Answer,
    Choice,
    Chunk,
    FinishReason,
    Messages,
    Model,
    Prompts,
    TokenLogprob,
    Tokens,
    TopLogprob,
    Usage,
)

Request = TypeVar("Request", bound=Proto)
Reply = TypeVar("Reply", bound=Proto)


@dataclass(frozen=True)
class Method(Generic[Request, Reply]):
    path: str
    request: type[Request]
    reply: type[Reply]


CHAT = Method("/t6.v1.Chat/CreateCompletion", chat_pb2.ChatCompletionRequest, chat_pb2.ChatCompletionResponse)
STREAM_CHAT = Method("/t6.v1.Chat/StreamCompletion", chat_pb2.ChatCompletionRequest, chat_pb2.ChatCompletionChunk)
COMPLETE = Method(
    "/t6.v1.Completions/CreateCompletion", completions_pb2.CompletionRequest, completions_pb2.CompletionResponse
)
STREAM_COMPLETE = Method(
    "/t6.v1.Completions/StreamCompletion", completions_pb2.CompletionRequest, completions_pb2.CompletionChunk
)
LIST_MODELS = Method("/t6.v1.Models/List", models_pb2.ListModelsRequest, models_pb2.ListModelsResponse)
GET_MODEL = Method("/t6.v1.Models/Get", models_pb2.GetModelRequest, models_pb2.Model)
TOKENIZE = Method("/t6.v1.Tokenizer/Tokenize", tokenizer_pb2.TokenizeRequest, tokenizer_pb2.TokenizeResponse)
DETOKENIZE = Method("/t6.v1.Tokenizer/Detokenize", tokenizer_pb2.DetokenizeRequest, tokenizer_pb2.DetokenizeResponse)
CHECK_HEALTH = Method("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse)

SAMPLING_FIELDS = frozenset(completions_pb2.SamplingOptions.DESCRIPTOR.fields_by_name)
CALL_FIELDS = frozenset(CallParams.__annotations__)


def _fill(message: type[Request], params: Mapping[str, Any], **given: Any) -> Request:
    """The message of `given` and of those `params` that are not about the call; None stands for a field left out."""
    fields: dict[str, Any] = dict(given)
    sampling: dict[str, Any] = {}
    for name, value in params.items():
        if value is None or name in CALL_FIELDS:
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        if name in SAMPLING_FIELDS and "sampling" in message.DESCRIPTOR.fields_by_name:
            sampling[name] = value
        elif name in message.DESCRIPTOR.fields_by_name:
            fields[name] = value
        else:
            raise TypeError(f"unknown argument {name!r}")
    if sampling:
        fields["sampling"] = sampling
    try:
        return message(**fields)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{message.DESCRIPTOR.name}: {error}") from None


def chat_request(messages: Messages, params: Mapping[str, Any]) -> chat_pb2.ChatCompletionRequest:
    return _fill(chat_pb2.ChatCompletionRequest, params, messages=[dict(message) for message in messages])


def completion_request(prompt: Prompts, params: Mapping[str, Any]) -> completions_pb2.CompletionRequest:
    return _fill(completions_pb2.CompletionRequest, params, prompts=_prompts(prompt))


def _prompts(prompt: Prompts) -> list[completions_pb2.Prompt]:
    if isinstance(prompt, str):
        return [completions_pb2.Prompt(text=prompt)]
    parts = list(prompt)
    if parts and all(isinstance(part, int) for part in parts):
        return [completions_pb2.Prompt(tokens=completions_pb2.TokenIds(ids=parts))]  # type: ignore[arg-type]
    return [single for part in parts for single in _prompts(part)]  # type: ignore[arg-type]


def tokenize_request(
    prompt: str | None, messages: Messages | None, params: Mapping[str, Any]
) -> tokenizer_pb2.TokenizeRequest:
    if (prompt is None) == (messages is None):
        raise TypeError("tokenize takes a prompt or messages")
    given = {"prompt": prompt} if messages is None else {"messages": [dict(message) for message in messages]}
    return _fill(tokenizer_pb2.TokenizeRequest, params, **given)


def _finish_reason(reason: int) -> FinishReason | None:
    match reason:
        case completions_pb2.FINISH_REASON_STOP:
            return "stop"
        case completions_pb2.FINISH_REASON_LENGTH:
            return "length"
    return None


def _choice(wire: chat_pb2.ChatChoice | completions_pb2.CompletionChoice) -> Choice:
    stop = wire.WhichOneof("stop_reason")
    return Choice(
        index=wire.index,
        text=wire.message.content if isinstance(wire, chat_pb2.ChatChoice) else wire.text,
        finish_reason=_finish_reason(wire.finish_reason),
        stop_reason=getattr(wire, stop) if stop else None,
        logprobs=tuple(_logprob(entry) for entry in wire.logprobs),
        token_ids=tuple(wire.token_ids),
        prompt_token_ids=tuple(wire.prompt_token_ids),
    )


def _logprob(wire: completions_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        token=wire.token,
        bytes=wire.bytes,
        logprob=wire.logprob if wire.HasField("logprob") else None,
        token_id=wire.token_id,
        top=tuple(TopLogprob(top.token, top.bytes, top.logprob, top.token_id) for top in wire.top),
    )


def _usage(wire: completions_pb2.Usage) -> Usage:
    return Usage(wire.prompt_tokens, wire.completion_tokens, wire.total_tokens, wire.cached_tokens)


def answer(wire: chat_pb2.ChatCompletionResponse | completions_pb2.CompletionResponse) -> Answer:
    choices = tuple(_choice(choice) for choice in wire.choices)
    return Answer(wire.id, wire.created, wire.model, choices, _usage(wire.usage))


def chunk(wire: chat_pb2.ChatCompletionChunk | completions_pb2.CompletionChunk) -> Chunk:
    return Chunk(
        id=wire.id,
        model=wire.model,
        choice=_choice(wire.choice) if wire.HasField("choice") else None,
        usage=_usage(wire.usage) if wire.HasField("usage") else None,
    )


def model(wire: models_pb2.Model) -> Model:
    return Model(
        id=wire.id,
        created=wire.created,
        owned_by=wire.owned_by,
        max_model_len=wire.max_model_len,
        variant=wire.variant,
        n_parameters=wire.n_parameters,
        vocab_size=wire.vocab_size,
        device=wire.device,
        dtype=wire.dtype,
        cache_dtype=wire.cache_dtype,
    )


def tokens(wire: tokenizer_pb2.TokenizeResponse) -> Tokens:
    return Tokens(tuple(wire.tokens), wire.max_model_len)


def is_serving(wire: health_pb2.HealthCheckResponse) -> bool:
    return bool(wire.status == health_pb2.HealthCheckResponse.SERVING)
