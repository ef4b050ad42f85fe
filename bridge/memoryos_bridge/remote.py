"""The gRPC server as the bridge sees it: one channel, calls with deadlines and few retries, and how it was started."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from memoryos.ids import new_id
from memoryos.schema import Method
from memoryos.tls import Tls
from memoryos.v1 import system_service_pb2 as system
from memoryos_bridge.errors import ClientGone, unreachable
from memoryos_bridge.exchange import Exchange, Watch
from memoryos_bridge.headers import Metadata
from memoryos_bridge.link import Link

_MARGIN_SECONDS = 0.5
"""How much longer than the policy's deadline the bridge waits: the server is to say itself that time is up."""

_RETRY_SECONDS = (0.05, 0.2)
"""The pauses before a repeatable call is tried again; only if the server was not reached."""

# The one service that is served with both stores down, too; a server that starts or drains says NOT_SERVING of it.
_SERVICE_CONFIG = json.dumps({"healthCheckConfig": {"serviceName": "memoryos.v1.SystemService"}})

_INFO_SECONDS = 10.0
_INFO_FAILED_SECONDS = 1.0
_INFO_PATH = "/memoryos.v1.SystemService/GetServerInfo"
_STATUS_KEY = "memoryos-status"
_RATE_KEY = "ratelimit"
_RATE_HEADERS = {"limit": "RateLimit-Limit", "remaining": "RateLimit-Remaining", "reset": "RateLimit-Reset"}
"""Of what stands behind an answer: `limit=1000, remaining=999, reset=1` -> the headers that say it."""


class Remote:
    """The server behind a channel."""

    def __init__(self, target: str, max_message_bytes: int, tls: Tls | None = None) -> None:
        """Makes the channel to one server or several; must run inside the event loop that uses it.

        Raises:
            SettingsError: A file of `tls` cannot be used.
        """
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # A server that starts after the bridge is found within a second.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.max_metadata_size", 64 * 1024),
            ("grpc.enable_http_proxy", 0),
            # Several addresses, of a name (a headless service) or of a list, are several servers: each gets its share,
            # and none while it says that it takes no calls.
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.service_config", _SERVICE_CONFIG),
            # Nothing but names and addresses is asked of DNS: a service configuration from DNS has nothing to say here.
            ("grpc.service_config_disable_resolution", 1),
            # Servers that are replaced one after the other have new addresses: they are asked for again as soon as one leaves.
            ("grpc.dns_min_time_between_resolutions_ms", 1_000),
            # A server that hangs, or a machine that is gone, is left within eight seconds, before most calls' deadlines of
            # ten; they fail, and are repeated elsewhere if they may be.
            ("grpc.keepalive_time_ms", 5_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            # A ping that measures the bandwidth holds that of the keepalive back: it, too, is answered in time or not at all.
            ("grpc.http2.ping_timeout_ms", 3_000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        self._link = Link(target, options, tls)
        self._stubs: dict[str, Callable[..., Any]] = {}
        self._info: system.GetServerInfoResponse | None = None
        self._info_until = 0.0
        self._info_lock = asyncio.Lock()

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        await self._link.close()

    def _stub(self, method: Method) -> Callable[..., Any]:
        if self._link.renewed():
            self._stubs.clear()
        stub = self._stubs.get(method.path)
        if stub is None:
            channel = self._link.channel
            make = channel.unary_stream if method.streams else channel.unary_unary
            stub = self._stubs[method.path] = make(
                method.path,
                request_serializer=method.request_class.SerializeToString,
                response_deserializer=method.response_class.FromString,
            )
        return stub

    async def call(self, exchange: Exchange, method: Method, request: Message, metadata: Metadata) -> Message:
        """The answer of a unary RPC; ended at once if the client leaves.

        Raises:
            grpc.aio.AioRpcError: The call failed.
            ClientGone: The client left.
        """
        stub = self._stub(method)
        if method.retryable:
            for name in method.made_ids:
                if not request.HasField(name):
                    setattr(request, name, new_id())
        with exchange.watching() as watch:
            for pause in (*(_RETRY_SECONDS if method.retryable else ()), None):
                call = stub(request, timeout=method.deadline + _MARGIN_SECONDS, metadata=metadata)
                watch.call = call
                try:
                    response: Message = await _unless_gone(watch, call)
                    note_status(exchange, await call.initial_metadata())
                    note_rate(exchange, await call.trailing_metadata())
                    return response
                except grpc.aio.AioRpcError as error:
                    note_status(exchange, error.initial_metadata())
                    note_rate(exchange, error.trailing_metadata())
                    if pause is None or not unreachable(error):
                        raise
                watch.call = None
                await asyncio.sleep(pause)
                if watch.gone:
                    raise ClientGone
        raise AssertionError("unreachable: the last try returns or raises")

    async def stream(
        self, exchange: Exchange, method: Method, request: Message, metadata: Metadata
    ) -> AsyncGenerator[Message, None]:
        """The messages of a server-streaming RPC; ended at once if the client leaves or the iterator is closed.

        Raises:
            grpc.aio.AioRpcError: The call failed.
            ClientGone: The client left.
        """
        with exchange.watching() as watch:
            for pause in (*(_RETRY_SECONDS if method.retryable else ()), None):
                call = self._stub(method)(request, timeout=method.deadline + _MARGIN_SECONDS, metadata=metadata)
                watch.call = call
                begun = False
                try:
                    while (message := await _unless_gone(watch, call.read())) is not grpc.aio.EOF:
                        if not begun:
                            begun = True
                            note_status(exchange, await call.initial_metadata())
                        yield message
                    if watch.gone:
                        raise ClientGone
                    return
                except grpc.aio.AioRpcError as error:
                    if not begun:
                        note_status(exchange, error.initial_metadata())
                        note_status(exchange, error.trailing_metadata())
                        note_rate(exchange, error.trailing_metadata())
                    if begun or pause is None or not unreachable(error):
                        raise
                finally:
                    call.cancel()
                watch.call = None
                await asyncio.sleep(pause)
                if watch.gone:
                    raise ClientGone

    async def info(self) -> system.GetServerInfoResponse | None:
        """How the server was started, at most some seconds old; None if it was never reached."""
        if time.monotonic() < self._info_until:
            return self._info
        async with self._info_lock:
            if time.monotonic() < self._info_until:
                return self._info
            stub = self._stubs.setdefault(
                _INFO_PATH,
                self._link.channel.unary_unary(
                    _INFO_PATH,
                    request_serializer=system.GetServerInfoRequest.SerializeToString,
                    response_deserializer=system.GetServerInfoResponse.FromString,
                ),
            )
            try:
                self._info = await stub(system.GetServerInfoRequest(), timeout=2.0)
                self._info_until = time.monotonic() + _INFO_SECONDS
            except grpc.aio.AioRpcError:
                # What was known stays: a server that is down answers nothing anyway.
                self._info_until = time.monotonic() + _INFO_FAILED_SECONDS
            return self._info


def note_status(exchange: Exchange, metadata: Any) -> None:
    """Hands on `memoryos-status` of the answer's metadata as a header."""
    for key, value in metadata or ():
        if key == _STATUS_KEY and isinstance(value, str):
            exchange.extra["X-MemoryOS-Status"] = value


def note_rate(exchange: Exchange, metadata: Any) -> None:
    """Hands on how the caller stands with its limit, as headers."""
    for key, value in metadata or ():
        if key == _RATE_KEY and isinstance(value, str):
            for part in value.split(", "):
                name, _, number = part.partition("=")
                if name in _RATE_HEADERS:
                    exchange.extra[_RATE_HEADERS[name]] = number


async def _unless_gone(watch: Watch, call: Any) -> Any:
    try:
        return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task and task.cancelling():
            raise
        # The watch cancels the call, not this task: only then is it the client who left.
        if watch.gone:
            raise ClientGone from None
        # The channel was closed under the call: the bridge is stopping and its patience is over.
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "The bridge is stopping") from None
