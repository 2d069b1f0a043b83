"""What the server answers, as plain immutable values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """One message of a conversation: {"role": "user", "content": "..."}, as in OpenAI's package."""

    role: str
    content: str


Messages = Sequence[Message]
Prompt = str | Sequence[int]
"""A text, or its token ids."""
Prompts = Prompt | Sequence[Prompt]
"""One, or several."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed again."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    token: str
    bytes: bytes
    logprob: float
    token_id: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: str
    """Valid Unicode; `bytes` is exact."""
    bytes: bytes
    logprob: float | None
    """None for the first token of an echoed prompt, which nothing predicts."""
    token_id: int
    top: tuple[TopLogprob, ...]
    """Most likely first."""


@dataclass(frozen=True, slots=True)
class Choice:
    index: int
    text: str
    finish_reason: FinishReason | None
    """None in all pieces of a stream but a choice's last."""
    stop_reason: str | int | None
    """The stop string or token id that ended the output."""
    logprobs: tuple[TokenLogprob, ...]
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    id: str
    created: int
    """Seconds since 1970."""
    model: str
    choices: tuple[Choice, ...]
    """One for each prompt."""
    usage: Usage

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.choices[0].text if self.choices else ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer: what is new of one choice, or, last, the usage."""

    id: str
    model: str
    choice: Choice | None
    usage: Usage | None

    @property
    def text(self) -> str:
        return self.choice.text if self.choice is not None else ""


@dataclass(frozen=True, slots=True)
class Model:
    id: str
    created: int
    owned_by: str
    max_model_len: int
    """Prompt and output together, in tokens."""
    variant: str
    n_parameters: int
    vocab_size: int
    device: str
    dtype: str
    """Of weights and products."""
    cache_dtype: str
    """Of cached factors."""


@dataclass(frozen=True, slots=True)
class Tokens:
    ids: tuple[int, ...]
    max_model_len: int

    def __len__(self) -> int:
        return len(self.ids)


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
