"""What a call is made of, the same for both clients: metadata, deadline, retries, requests.

Deadlines and what may be repeated come from the proto, by `memoryos.schema`: there is no list of methods here.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import quote

import grpc

from memoryos import model, schema
from memoryos.errors import MemoryOSError
from memoryos.ids import new_id
from memoryos.v1 import chat_service_pb2, memory_service_pb2, types_pb2

ATTEMPTS = 5
"""The most times a call is sent."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds: the bounds of the random pause before the second attempt and before any."""

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # A server that was restarted is found again quickly; gRPC's own first pause is a second, its longest two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

Message = Mapping[str, Any]
"""A chat message in OpenAI's form."""


@dataclass(frozen=True, slots=True)
class Identity:
    """As whom calls are made.

    Attributes:
        api_key: The key, or None with auth off.
        user_id: Whose memory it is where a call does not say, or None for the key's user.
        tenant_id: The tenant, or None for the key's.
    """

    api_key: str | None = field(default=None, repr=False)
    user_id: str | None = None
    tenant_id: str | None = None

    def metadata(self, user_id: str | None, request_id: str) -> tuple[tuple[str, str], ...]:
        """The metadata of one call; `user_id` wins over the client's own."""
        user = self.user_id if user_id is None else user_id
        pairs = [("x-request-id", request_id)]
        if self.api_key:
            pairs.append(("authorization", f"Bearer {self.api_key}"))
        if user:
            pairs.append(("x-user-id", quote(user, safe="")))
        if self.tenant_id:
            pairs.append(("x-tenant-id", self.tenant_id))
        return tuple(pairs)


class Attempts:
    """The attempts of one call within its deadline.

    Only methods the proto declares repeatable are sent again, only on UNAVAILABLE, after a random pause whose bound
    doubles each time (and which is never shorter than the server asked for), and only while the deadline leaves time.
    """

    def __init__(self, method: schema.Method, timeout: float | None) -> None:
        """Starts the clock.

        Args:
            method: What is called.
            timeout: Seconds for all attempts together; None: the method's own deadline.
        """
        self._method = method
        self._end = time.monotonic() + (method.deadline if timeout is None else timeout)
        self._sent = 0

    def next_timeout(self) -> float:
        """The seconds the next attempt may take; counts it."""
        self._sent += 1
        return max(self._end - time.monotonic(), 0.001)

    def pause_after(self, error: MemoryOSError) -> float | None:
        """The seconds to wait before another attempt, or None: give up."""
        repeatable = self._method.retryable and not self._method.streams
        if error.code is not grpc.StatusCode.UNAVAILABLE or not repeatable or self._sent >= ATTEMPTS:
            return None
        bound = min(FIRST_PAUSE * 2 ** (self._sent - 1), LONGEST_PAUSE)
        pause = max(random.uniform(bound / 2, bound), error.retry_after or 0.0)  # noqa: S311  # jitter, not a secret
        return pause if time.monotonic() + pause < self._end else None


@cache
def methods() -> Mapping[str, schema.Method]:
    """Every RPC by its name and by its path."""
    return {key: m for m in schema.load() for key in (m.name, m.path)}


def method(named: schema.Method | str) -> schema.Method:
    """An RPC by its name, such as `AddMemory`.

    Raises:
        KeyError: There is none of this name.
    """
    return methods()[named] if isinstance(named, str) else named


def is_degraded(metadata: Any) -> bool:
    """Whether an answer's initial metadata says that a store was down."""
    return any(name == "memoryos-status" and value == "degraded" for name, value in metadata or ())


def add_request(
    content: str,
    role: str,
    session_id: str | None,
    event_id: str | None,
    name: str | None,
    timestamp: datetime | None,
) -> memory_service_pb2.AddMemoryRequest:
    """The request of `add`, with an event id in any case, so that repeating the call is safe."""
    return memory_service_pb2.AddMemoryRequest(
        role=types_pb2.Role.ValueType(model.value(types_pb2.Role, role, "role")),
        content=content,
        event_id=event_id or new_id(),
        session_id=session_id,
        name=name,
        timestamp=None if timestamp is None else model.stamp(timestamp),
    )


def retrieve_request(
    query: str,
    limit: int | None,
    min_score: float | None,
    max_tokens: int | None,
    as_of: datetime | None,
    explain: bool,
) -> memory_service_pb2.RetrieveMemoryRequest:
    """The request of `retrieve`."""
    return memory_service_pb2.RetrieveMemoryRequest(
        query=query,
        limit=limit,
        min_score=min_score,
        max_tokens=max_tokens,
        as_of=None if as_of is None else model.stamp(as_of),
        explain=explain,
    )


def chat_request(
    messages: str | Sequence[Message],
    name: str,
    memory: str,
    session_id: str | None,
    temperature: float | None,
    max_tokens: int | None,
    idempotency_key: str | None,
    extra: Mapping[str, Any] | None,
) -> chat_service_pb2.ChatRequest:
    """The conversation of `chat` and `stream_chat`; `name` is the model's."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    modes = chat_service_pb2.MemoryMode
    mode = modes.ValueType(0 if memory == "on" else model.value(modes, memory, "memory"))
    return chat_service_pb2.ChatRequest(
        model=name,
        messages=list(_messages(messages)),
        temperature=temperature,
        max_tokens=max_tokens,
        extra_json=json.dumps(extra, ensure_ascii=False) if extra else None,
        session_id=session_id,
        memory=mode,
        idempotency_key=idempotency_key,
    )


def _messages(messages: Sequence[Message]) -> Iterator[chat_service_pb2.ChatMessage]:
    for message in messages:
        plain = message.keys() <= {"role", "content", "name"}
        if plain and all(isinstance(text, str) for text in message.values()):
            yield chat_service_pb2.ChatMessage(
                role=message.get("role", ""), content=message.get("content", ""), name=message.get("name")
            )
        else:
            whole = json.dumps(message, ensure_ascii=False)
            yield chat_service_pb2.ChatMessage(role=str(message.get("role", "")), message_json=whole)


class ChatEvents:
    """What the events of a streamed answer have said so far.

    Attributes:
        finish_reason: Why the answer ended, "" until then.
    """

    def __init__(self) -> None:
        """Nothing has been said yet."""
        self._start: model.ChatMemory | None = None
        self._end: model.ChatMemory | None = None
        self.finish_reason = ""

    @property
    def memory(self) -> model.ChatMemory | None:
        """What memory did: known at the start, final (`remembered`) once the answer has completed; None before both."""
        return self._end or self._start

    @property
    def completed(self) -> bool:
        """Whether the answer came to its end."""
        return self._end is not None

    def take(self, message: chat_service_pb2.StreamChatCompletionResponse) -> str:
        """Takes in one event and gives its text, "" if it has none."""
        kind = message.WhichOneof("event")
        if kind == "start":
            self._start = model.chat_memory(message.start)
        elif kind == "end":
            self._end = model.chat_memory(message.end.memory)
        elif kind == "chunk":
            self.finish_reason = message.chunk.finish_reason or self.finish_reason
            return message.chunk.content
        return ""
