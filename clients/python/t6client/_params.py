"""What a caller may say about a request. Keyword arguments of the clients' methods; absent or None: the server's default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class CallParams(TypedDict, total=False):
    """Of the call itself."""

    timeout: float | None
    """Seconds until DeadlineExceededError, all attempts together; None: as long as it takes."""
    affinity: str | None
    """Sent as x-t6-context: a balancer takes calls with the same value to the same replica. Visible ASCII."""
    request_id: str | None
    """Sent as x-request-id, for the server's log."""
    wait_for_ready: bool
    """True: wait for a server that cannot be reached, until the timeout, instead of failing."""


class SamplingParams(CallParams, total=False):
    """How tokens are chosen and when the output ends; docs/api.md says what each means."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool


class GenerationParams(SamplingParams, total=False):
    """Common to chats and completions."""

    model: str | None
    """One of models(); None: the server's only one."""
    return_token_ids: bool
    user: str | None
    cache_salt: str | None
    priority: int | None


class ChatParams(GenerationParams, total=False):
    """Of chat() and stream_chat()."""

    logprobs: bool
    top_logprobs: int | None
    add_generation_prompt: bool | None
    continue_final_message: bool


class CompletionParams(GenerationParams, total=False):
    """Of complete() and stream_complete()."""

    logprobs: int | None
    echo: bool
    add_special_tokens: bool | None


class TokenizeParams(CallParams, total=False):
    """Of tokenize()."""

    model: str | None
    add_special_tokens: bool | None
    add_generation_prompt: bool | None
    continue_final_message: bool
