"""The synchronous client.

It knows channels and errors; what a call is made of stands in `memoryos.calls`, what it answers in `memoryos.model`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from memoryos import calls, model, schema
from memoryos.auditing import Audit
from memoryos.consents import Consent
from memoryos.errors import from_rpc
from memoryos.events import Event, became
from memoryos.ids import new_id
from memoryos.keys import Keys
from memoryos.memories import Memories
from memoryos.model import answer  # `chat` has a parameter called model
from memoryos.privacy import Privacy
from memoryos.queueing import Queue
from memoryos.receipts import Receipts
from memoryos.segments import Segments
from memoryos.sessions import Sessions
from memoryos.settings import CLIENT_KEY
from memoryos.tls import Tls, channel_security
from memoryos.usage import Usage
from memoryos.v1 import chat_service_pb2, memory_service_pb2, system_service_pb2


class Client:
    """A MemoryOS server.

    Threads may share one client. A process that forks makes its client after the fork: channels do not survive one.
    Methods raise `memoryos.errors.MemoryOSError`, in its subclasses. Repeatable calls are sent again when the server
    cannot be reached, within their deadline; `add` is one of them, because the client gives every turn an event id.

    Args:
        address: host:port of the gRPC server.
        api_key: The key; None: the environment's MEMORYOS_API_KEY, if there is one.
        user_id: Whose memory it is where a call does not say; None: the key's user.
        tenant_id: The tenant; None: the key's.
        tls: Whether to speak TLS, trusting the system's authorities; or whom to trust and what to show.
        credentials: TLS as gRPC has it; implies `tls`.
        timeout: Seconds a call may take, all attempts together; None: what the method's definition says.

    Attributes:
        segments: Tags, versions, export and import of mid-term memory.
        memories: Typed memories: rules, facts and contexts.
        sessions: Conversations.
        queue: Accepted work and dead letters; it takes a key with `admin`.
        receipts: Which memories went into chats.
        usage: What chats cost.
        keys: API keys and the users of a tenant; it takes a key with `admin`.
        audit: What was recorded.
        privacy: A person's data, handed over whole or erased.
        consent: What people agree to.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        api_key: str | None = None,
        user_id: str | None = None,
        tenant_id: str | None = None,
        *,
        tls: bool | Tls = False,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float | None = None,
    ) -> None:
        """Makes the channel; it connects when it is first used."""
        self._identity = calls.Identity(api_key or os.environ.get(CLIENT_KEY), user_id, tenant_id)
        self._timeout = timeout
        credentials, secured = channel_security(tls, credentials)
        options = calls.CHANNEL_OPTIONS + secured
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._callables: dict[str, Any] = {}
        self.segments = Segments(self)
        self.memories = Memories(self)
        self.sessions = Sessions(self)
        self.queue = Queue(self)
        self.receipts = Receipts(self)
        self.usage = Usage(self)
        self.keys = Keys(self)
        self.audit = Audit(self)
        self.privacy = Privacy(self)
        self.consent = Consent(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        self._channel.close()

    def add(
        self,
        content: str,
        role: str = "user",
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        event_id: str | None = None,
        name: str | None = None,
        timestamp: datetime | None = None,
        timeout: float | None = None,
    ) -> model.AddedMemory:
        """Keeps one turn.

        Args:
            content: The text, 1..100,000 characters.
            role: `user`, `assistant` or `system`.
            user_id: Whose memory it is; default: the client's.
            session_id: The conversation it belongs to.
            event_id: Makes the turn recognisable when it is sent again later; default: a new one.
            name: The speaker's name.
            timestamp: When it was said, with a zone; default: now.
            timeout: Seconds; default: the client's.
        """
        request = calls.add_request(content, role, session_id, event_id, name, timestamp)
        return model.added(*self._call("AddMemory", request, user_id, timeout))

    def retrieve(
        self,
        query: str,
        *,
        user_id: str | None = None,
        limit: int | None = None,
        min_score: float | None = None,
        max_tokens: int | None = None,
        as_of: datetime | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> model.Retrieved:
        """Finds what is relevant to a question.

        Args:
            query: The question, 1..100,000 characters.
            user_id: Whose memory it is; default: the client's.
            limit: The number of episodes, 1..1000; default 10.
            min_score: Leaves out episodes scored below it, 0..1.
            max_tokens: Leaves out what does not fit into a budget of estimated tokens.
            as_of: Answers from what had been said by then.
            explain: Adds how each score came about.
            timeout: Seconds; default: the client's.
        """
        request = calls.retrieve_request(query, limit, min_score, max_tokens, as_of, explain)
        return model.retrieved(*self._call("RetrieveMemory", request, user_id, timeout))

    def history(
        self, memory_id: str, *, user_id: str | None = None, timeout: float | None = None
    ) -> list[model.Version]:
        """The versions of one memory, newest first."""
        request = memory_service_pb2.GetMemoryHistoryRequest(memory_id=memory_id)
        response, _ = self._call("GetMemoryHistory", request, user_id, timeout)
        return model.versions(response)

    def event(self, event_id: str, *, user_id: str | None = None, timeout: float | None = None) -> Event:
        """What became of the turn that was added under an event id."""
        request = memory_service_pb2.GetEventRequest(event_id=event_id)
        response, _ = self._call("GetEvent", request, user_id, timeout)
        return became(response)

    def delete(self, memory_id: str, *, user_id: str | None = None, timeout: float | None = None) -> int:
        """Removes a memory of any kind, with what was derived from it, and gives the number of the derived."""
        request = memory_service_pb2.DeleteMemoryRequest(memory_id=memory_id)
        response, _ = self._call("DeleteMemory", request, user_id, timeout)
        return int(response.derived)

    def chat(
        self,
        messages: str | Sequence[calls.Message],
        *,
        model: str,
        memory: str = "on",
        user_id: str | None = None,
        session_id: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        idempotency_key: str | None = None,
        extra: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> model.ChatAnswer:
        """Answers a conversation, recalling and remembering by itself.

        Args:
            messages: One question, or messages in OpenAI's form.
            model: The model's name, such as the built-in `memoryos/recall`.
            memory: `on`, `off`, `read` (only recall) or `write` (only remember).
            user_id: Whose memory it is; default: the client's.
            session_id: The conversation; default: one per idle gap.
            temperature: 0..2.
            max_tokens: The longest answer.
            idempotency_key: Dedupes the remembering, not the call to the provider.
            extra: Every other parameter of OpenAI's, passed on unchanged.
            timeout: Seconds; default: the client's.
        """
        chat = calls.chat_request(messages, model, memory, session_id, temperature, max_tokens, idempotency_key, extra)
        request = chat_service_pb2.CreateChatCompletionRequest(chat=chat)
        return answer(*self._call("CreateChatCompletion", request, user_id, timeout))

    def stream_chat(
        self,
        messages: str | Sequence[calls.Message],
        *,
        model: str,
        memory: str = "on",
        user_id: str | None = None,
        session_id: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        idempotency_key: str | None = None,
        extra: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> ChatStream:
        """Answers a conversation as the words come; takes what `chat` takes."""
        chat = calls.chat_request(messages, model, memory, session_id, temperature, max_tokens, idempotency_key, extra)
        request = chat_service_pb2.StreamChatCompletionRequest(chat=chat)
        return ChatStream(*self._open(calls.method("StreamChatCompletion"), request, user_id, timeout))

    def models(self, *, timeout: float | None = None) -> list[model.Model]:
        """The models that can be named."""
        response, _ = self._call("ListModels", chat_service_pb2.ListModelsRequest(), None, timeout)
        return [model.Model(m.id, m.owned_by) for m in response.data]

    def health(self, *, timeout: float | None = None) -> model.Health:
        """What the server can serve now."""
        request = system_service_pb2.GetHealthStatusRequest()
        response, _ = self._call("GetHealthStatus", request, None, timeout)
        return model.health(response)

    def call(
        self,
        method: schema.Method | str,
        request: Message,
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> Message:
        """Calls any RPC that answers once, with deadline and retries as its definition says.

        Args:
            method: The RPC, or its name, such as `AddMemory`.
            request: Its request message.
            user_id: Whose data it touches; default: the client's.
            timeout: Seconds; default: the client's.
        """
        response: Message = self._call(method, request, user_id, timeout)[0]
        return response

    def stream(
        self,
        method: schema.Method | str,
        request: Message,
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Message]:
        """Calls any RPC that answers with a stream; leaving the iterator early cancels it."""
        call, request_id = self._open(calls.method(method), request, user_id, timeout)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc(error, request_id) from None
        finally:
            call.cancel()

    def _call(
        self, named: schema.Method | str, request: Message, user_id: str | None, timeout: float | None
    ) -> tuple[Any, bool]:
        method = calls.method(named)
        attempts = calls.Attempts(method, self._timeout if timeout is None else timeout)
        request_id = new_id()
        metadata = self._identity.metadata(user_id, request_id)
        while True:
            try:
                response, call = self._callable(method).with_call(
                    request, timeout=attempts.next_timeout(), metadata=metadata
                )
            except grpc.RpcError as failed:
                error = from_rpc(failed, request_id)
                pause = attempts.pause_after(error)
                if pause is None:
                    raise error from None
                time.sleep(pause)
            else:
                return response, calls.is_degraded(call.initial_metadata())

    def _open(
        self, method: schema.Method, request: Message, user_id: str | None, timeout: float | None
    ) -> tuple[Any, str]:
        attempts = calls.Attempts(method, self._timeout if timeout is None else timeout)
        request_id = new_id()
        metadata = self._identity.metadata(user_id, request_id)
        call = self._callable(method)(request, timeout=attempts.next_timeout(), metadata=metadata)
        return call, request_id

    def _callable(self, method: schema.Method) -> Any:
        if method.path not in self._callables:  # two threads may both make one: either serves
            make = self._channel.unary_stream if method.streams else self._channel.unary_unary
            self._callables[method.path] = make(
                method.path,
                request_serializer=method.request_class.SerializeToString,
                response_deserializer=method.response_class.FromString,
            )
        return self._callables[method.path]


class ChatStream(calls.ChatEvents):
    """An answer as it comes: iterate for the pieces of its text.

    Leaving the iteration early does not end the answer; `close`, or leaving the `with` block, does.
    """

    def __init__(self, call: Any, request_id: str) -> None:
        """Takes over an open call."""
        super().__init__()
        self._call = call
        self._request_id = request_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what is left of the answer; the server then stops the provider."""
        self._call.cancel()

    def __iter__(self) -> Iterator[str]:
        try:
            for message in self._call:
                if text := self.take(message):
                    yield text
        except grpc.RpcError as error:
            raise from_rpc(error, self._request_id) from None
