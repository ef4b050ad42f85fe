"""OpenAI's `POST /v1/chat/completions` and `/v1/responses`, JSON and SSE: the routes whose HTTP shape is not ours.

The body goes to the server as it came, and the provider's bytes go to the client as they come; only `stream` is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import grpc
import orjson

from memoryos.schema import Method
from memoryos.v1 import chat_service_pb2 as chat
from memoryos_bridge.binding import check_json
from memoryos_bridge.codec import loads
from memoryos_bridge.errors import from_rpc, internal, invalid
from memoryos_bridge.exchange import Exchange
from memoryos_bridge.headers import Forwarding, Metadata, percent_utf8
from memoryos_bridge.remote import Remote

PAIRS = (
    ("/memoryos.v1.ChatService/CreateChatCompletion", "/memoryos.v1.ChatService/StreamChatCompletion"),
    ("/memoryos.v1.ChatService/CreateResponse", "/memoryos.v1.ChatService/StreamResponse"),
)
"""The RPC that answers at once, which has the route, and the one that streams."""

_MODES = {
    "off": chat.MEMORY_MODE_OFF,
    "read": chat.MEMORY_MODE_READ,
    "write": chat.MEMORY_MODE_WRITE,
}
_Whole = chat.CreateChatCompletionResponse | chat.CreateResponseResponse
_Event = chat.StreamChatCompletionResponse | chat.StreamResponseResponse
_LONGEST_LIST = 1_000
_SSE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ChatRoute:
    """Serves one of the two routes."""

    def __init__(self, create: Method, stream: Method, remote: Remote, forwarding: Forwarding) -> None:
        """Keeps the two RPCs behind the route."""
        self._create = create
        self._stream = stream
        self._remote = remote
        self._forwarding = forwarding

    async def __call__(self, exchange: Exchange, parts: Sequence[str]) -> None:
        """Serves a request.

        Raises:
            BridgeError: It fails before the first byte of the answer.
            ClientGone: The client left.
        """
        metadata = self._forwarding.metadata(exchange)
        body = await exchange.body(self._create.max_body_bytes)
        check_json(exchange)
        stream = _streamed(body)
        request = chat.ChatRequest(
            body_json=body.decode("utf-8"), memory=_mode(exchange), comment=_asks_for_comment(exchange)
        )
        session = _text(exchange, "x-memoryos-session-id", "X-MemoryOS-Session-ID")
        if session is not None:
            request.session_id = session
        key = _text(exchange, "idempotency-key", "Idempotency-Key")
        if key is not None:
            request.idempotency_key = key
        if stream:
            await self._answer_stream(exchange, request, metadata)
        else:
            await self._answer(exchange, request, metadata)

    async def _answer(self, exchange: Exchange, request: chat.ChatRequest, metadata: Metadata) -> None:
        message = self._create.request_class(chat=request)
        try:
            response = await self._remote.call(exchange, self._create, message, metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        assert isinstance(response, _Whole)  # noqa: S101 - the stub's type, for the checker
        await exchange.answer(
            200,
            response.body,
            content_type=response.content_type or "application/json",
            headers=_facts(response.memory),
        )

    async def _answer_stream(self, exchange: Exchange, request: chat.ChatRequest, metadata: Metadata) -> None:
        message = self._stream.request_class(chat=request, raw=True)
        async with aclosing(self._remote.stream(exchange, self._stream, message, metadata)) as events:
            facts = chat.ChatMemory()
            tail = b""
            try:
                async for event in events:
                    assert isinstance(event, _Event)  # noqa: S101 - as above
                    kind = event.WhichOneof("event")
                    if kind == "start":
                        facts = event.start
                    elif kind == "raw" and event.raw:
                        # The head waits for the first byte: until then a failure is a normal HTTP error.
                        if not exchange.started:
                            await exchange.start(200, "text/event-stream", _SSE | _facts(facts), None)
                        await exchange.write(event.raw)
                        tail = (tail + event.raw)[-4:]
            except grpc.aio.AioRpcError as error:
                failure = from_rpc(error)
                if not exchange.started:
                    raise failure from None
                exchange.code = failure.code
                await exchange.write(_break(tail) + b"data: " + failure.body() + b"\n\n", last=True)
                return
            if not exchange.started:
                raise internal()
            await exchange.write(b"", last=True)


def _streamed(body: bytes) -> bool:
    """Whether a body asks for a stream. What it holds otherwise is the server's concern, and the provider's.

    Raises:
        BridgeError: It is no JSON object, or `stream` is no truth value (400).
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = _leniently(body)
    if type(value) is not dict:
        raise invalid("The body must be an object")
    stream = value.get("stream")
    if stream is not None and type(stream) is not bool:
        raise invalid("stream must be true or false", "stream")
    return stream is True


def _leniently(body: bytes) -> Any:
    # JavaScript writes half of a character that it cut as an escape; a number may be too large for a double.
    try:
        return json.loads(body.decode("utf-8"), parse_int=float)
    except (ValueError, RecursionError):
        return loads(body)


def _break(tail: bytes) -> bytes:
    """What ends an event that was cut in the middle, so that the error is an event of its own."""
    lines = tail.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"" if not tail or lines.endswith(b"\n\n") else b"\n" if lines.endswith(b"\n") else b"\n\n"


def _mode(exchange: Exchange) -> chat.MemoryMode.ValueType:
    value = exchange.header("x-memoryos-memory")
    if value is None:
        return chat.MEMORY_MODE_UNSPECIFIED
    mode = _MODES.get(value.strip().lower())
    if mode is None:
        raise invalid("The header X-MemoryOS-Memory must be off, read or write", "X-MemoryOS-Memory")
    return mode


def _asks_for_comment(exchange: Exchange) -> bool:
    value = exchange.header("x-memoryos-report")
    if value is not None and value.strip().lower() != "comment":
        raise invalid("The header X-MemoryOS-Report must be comment", "X-MemoryOS-Report")
    return value is not None


def _text(exchange: Exchange, name: str, shown: str) -> str | None:
    value = exchange.header(name)
    if value is None:
        return None
    try:
        text = value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"The header {shown} must be UTF-8", shown) from None
    if not 1 <= len(text) <= 256:
        raise invalid(f"The header {shown} must have 1 to 256 characters", shown)
    return text


def _listed(names: Sequence[str]) -> str:
    """Names in a header, as many as fit: clients may send any number of them."""
    listed = ",".join(names)
    return listed if len(listed) <= _LONGEST_LIST else listed[:_LONGEST_LIST].rpartition(",")[0] + ",..."


def _facts(memory: chat.ChatMemory) -> dict[str, str]:
    """What memory did, as headers."""
    headers = {"X-MemoryOS-Memories": str(len(memory.injected))}
    for name, value in (
        ("X-MemoryOS-Source", memory.source),
        ("X-MemoryOS-Remembered", memory.remembered),
        ("X-MemoryOS-Event-ID", memory.event_id),
        ("X-MemoryOS-Session-ID", memory.session_id),
        ("X-MemoryOS-Provider", memory.provider),
        ("X-MemoryOS-Dropped", _listed(memory.dropped)),
        ("X-MemoryOS-Receipt", memory.receipt_id),
        ("X-MemoryOS-Reason", memory.reason),
    ):
        if value:
            headers[name] = percent_utf8(value)
    return headers
