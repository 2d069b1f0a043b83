"""One exception for each way a call can fail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import grpc


class T6Error(Exception):
    """A call failed. `str()` is the server's message, which quotes the offending value."""

    def __init__(self, message: str, code: grpc.StatusCode, metadata: Iterable[tuple[str, str | bytes]] = ()) -> None:
        super().__init__(message)
        self.code = code
        found = {key: value for key, value in metadata if isinstance(value, str)}
        self.param: str | None = found.get("t6-error-param")
        """The request's field at fault, as the HTTP API names it: "temperature", "messages[2].role"."""
        self.request_id: str | None = found.get("x-request-id")
        pushback = found.get("grpc-retry-pushback-ms", "")
        self.retry_after: float | None = int(pushback) / 1000 if pushback.isdecimal() else None
        """Seconds after which the server would like to see the request again, where it said so."""


class BadRequestError(T6Error):
    """INVALID_ARGUMENT and its kind: the request cannot be answered as it stands."""


class AuthenticationError(T6Error):
    """UNAUTHENTICATED, PERMISSION_DENIED: no API key, an unknown one, or one that may not do this."""


class NotFoundError(T6Error):
    """NOT_FOUND: no such model, service or context."""


class RateLimitError(T6Error):
    """RESOURCE_EXHAUSTED: the server's queue is full, and stayed so for as long as retries went on."""


class UnavailableError(T6Error):
    """UNAVAILABLE: no server there, or none that takes requests; a stream broke."""


class DeadlineExceededError(T6Error):
    """DEADLINE_EXCEEDED: `timeout` is over."""


class CancelledError(T6Error):
    """CANCELLED: by cancel(), by closing the client, or by the server."""


class ServerError(T6Error):
    """INTERNAL, UNKNOWN, DATA_LOSS, UNIMPLEMENTED: the server's fault, or it is no t6d."""


_CLASSES: dict[grpc.StatusCode, type[T6Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequestError,
    grpc.StatusCode.OUT_OF_RANGE: BadRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: BadRequestError,
    grpc.StatusCode.ALREADY_EXISTS: BadRequestError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimitError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
}


class _Ended(Protocol):
    """What grpc's exceptions of both kinds know of the call."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...
    def initial_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def from_rpc(error: grpc.RpcError) -> T6Error:
    ended: _Ended = error  # type: ignore[assignment]
    metadata = [pair for part in (ended.initial_metadata(), ended.trailing_metadata()) for pair in part or ()]
    code = ended.code()
    return _CLASSES.get(code, ServerError)(ended.details() or code.name, code, metadata)
