"""How a client reaches its server: retries, metadata, channel options. Shared by both clients; no I/O but its own files."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SERVICE_CONFIG: str = importlib.resources.files(__package__).joinpath("service_config.json").read_text()
"""gRPC's own description of how t6d wants to be retried, JSON; for channels of your own, in any language."""

# The most that the server takes. What is longer than this buffer is not retried, and must not be: it is always refused.
_LARGEST_REQUEST = 16 << 20
_LARGEST_REPLY = 64 << 20


@dataclass(frozen=True, slots=True)
class Retry:
    """How a call that the server turned away is tried again: after the time that the server asks for
    (grpc-retry-pushback-ms), else after a random time up to a bound that grows. Only UNAVAILABLE and RESOURCE_EXHAUSTED
    are retried, never once an answer has begun, and not when the server says not to. gRPC itself does it.
    """

    max_attempts: int = 2
    """The first one included, 5 at most. One replay: a request that kills its server must not kill a third."""
    initial_backoff: float = 0.1
    """Seconds."""
    max_backoff: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 5:
            raise ValueError(f"max_attempts must be 1 to 5, got {self.max_attempts}")
        if not 0 < self.initial_backoff <= self.max_backoff or self.multiplier <= 0:
            raise ValueError(f"backoffs must be positive and grow, got {self}")

    def service_config(self) -> str:
        config = json.loads(SERVICE_CONFIG)
        for method in config["methodConfig"]:
            if self.max_attempts == 1:
                del method["retryPolicy"]
                continue
            method["retryPolicy"] |= {
                "maxAttempts": self.max_attempts,
                "initialBackoff": _duration(self.initial_backoff),
                "maxBackoff": _duration(self.max_backoff),
                "backoffMultiplier": self.multiplier,
            }
        return json.dumps(config)


NO_RETRY = Retry(max_attempts=1)


def _duration(seconds: float) -> str:
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def user_agent() -> str:
    try:
        return f"t6client/{version('t6client')}"
    except PackageNotFoundError:  # imported from a folder that was never installed
        return "t6client"


def channel_options(retry: Retry) -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", retry.service_config()),
        ("grpc.enable_retries", int(retry.max_attempts > 1)),
        ("grpc.per_rpc_retry_buffer_size", _LARGEST_REQUEST),
        ("grpc.max_receive_message_length", _LARGEST_REPLY),
        # A server that vanished without a word is noticed while a call waits for it.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.primary_user_agent", user_agent()),
    ]


@dataclass(frozen=True, slots=True)
class Settings:
    api_key: str | None = field(repr=False)  # or a traceback with local variables would show it
    affinity: str | None
    timeout: float | None

    def __post_init__(self) -> None:
        if self.api_key is not None:
            _check_visible("api_key", self.api_key, quote=False)

    def call(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """grpc's arguments for a call with these parameters."""
        metadata = [] if self.api_key is None else [("authorization", f"Bearer {self.api_key}")]
        for header, name, default in (("x-t6-context", "affinity", self.affinity), ("x-request-id", "request_id", None)):
            value = params.get(name, default)
            if value is not None:
                metadata.append((header, _check_visible(name, value)))
        return {
            "timeout": params.get("timeout", self.timeout),
            "metadata": tuple(metadata),
            "wait_for_ready": params.get("wait_for_ready"),
        }


def _check_visible(name: str, value: str, quote: bool = True) -> str:
    if not value or not all("!" <= letter <= "~" for letter in value):
        raise ValueError(f"{name} must be visible ASCII characters" + (f", got {value!r}" if quote else ""))
    return value
