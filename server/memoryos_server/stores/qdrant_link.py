"""The connection to a Qdrant server: its gRPC stubs, deadlines, and what its failures mean.

Messages go over the stubs as they are: the client's models of them would cost more than the calls.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from qdrant_client import AsyncQdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.stores.breaker import Breaker, Call

_log = Sparing(logging.getLogger(__name__))

_HANGS = "The vector store does not answer in time"
_REFUSES = "The vector store is not reachable"

_REST_PORT, _GRPC_PORT = 6333, 6334

_OPTIONS = {
    # gRPC's own pace of reconnecting goes up to two minutes; a store that is back is to be found back.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
    # A peer that is gone without a word is noticed.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 5_000,
}


class QdrantRefused(Exception):
    """The server says that a request is wrong: a mistake of ours, which trying again does not mend."""


class KeyRefused(BackendDown):
    """The server does not take the key."""


class NoCollection(BackendDown):
    """A collection is not there any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Qdrant server takes gRPC.

    Attributes:
        host: Its name or address.
        port: Of gRPC.
        tls: Whether it is spoken to over TLS.
        api_key: "" for none.
        ca_file: Who signed its certificate, PEM; "": whom the machine trusts.
    """

    host: str
    port: int
    tls: bool = False
    api_key: str = field(default="", repr=False)
    ca_file: str = ""

    @classmethod
    def of(cls, url: str, *, api_key: str = "", ca_file: str = "") -> Place:
        """The place a URL names: `http://host`, `https://host:6334`. Port 6333, which is that of REST, stands for 6334.

        Raises:
            ValueError: It is no such URL; the message says what it should be, and never repeats it: it may hold a key.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if (
            parts.scheme not in ("http", "https")
            or not host
            or "@" in parts.netloc
            or parts.path.strip("/")
            or parts.query
        ):
            raise ValueError(
                "it is no URL of a Qdrant server, such as http://localhost:6334; a key is set as qdrant.api_key"
            )
        if ca_file and parts.scheme != "https":
            raise ValueError("a file of authorities goes with an https URL only")
        return cls(host, _GRPC_PORT if port in (None, _REST_PORT) else port, parts.scheme == "https", api_key, ca_file)


class QdrantLink:
    """Calls of a Qdrant server. `points`, `collections` and `root` are its stubs.

    Args:
        place: Where it is.
        deadline: Per call, seconds.
    """

    def __init__(self, place: Place, *, deadline: float) -> None:
        options: dict[str, Any] = dict(_OPTIONS)
        if place.ca_file:
            options["root_certificates"] = Path(place.ca_file).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # a key in the clear is `doctor`'s to speak of, not once a start
            self._client = AsyncQdrantClient(
                host=f"[{place.host}]" if ":" in place.host else place.host,
                grpc_port=place.port,
                https=place.tls,
                api_key=place.api_key or None,
                prefer_grpc=True,
                grpc_options=options,
                check_compatibility=False,  # that asks REST; `qdrant_schema` looks at the version
                pool_size=1,
            )
        self._deadline = deadline
        self._lost = False
        self.breaker = Breaker(_HANGS, _REFUSES)
        self.points: Any = self._client.grpc_points
        self.collections: Any = self._client.grpc_collections
        self.root: Any = self._client._client.grpc_root  # type: ignore[attr-defined]  # the one stub it does not hand on
        self.regained: Callable[[], None] = lambda: None
        """Called when the server answers again after it did not."""

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close(grpc_grace=0)

    async def call(self, method: Callable[..., Awaitable[Any]], request: Any, *, deadline: float | None = None) -> Any:
        """What a stub's method answers. Never repeats a request.

        Args:
            method: Of one of the stubs.
            request: Its message.
            deadline: Seconds, if another than usual; then it is waited for though the server answers nobody meanwhile.

        Raises:
            BackendDown: It cannot be reached, does not answer in time, or fails. The request may have been done.
            NoCollection: The collection is not there.
            QdrantRefused: The request is wrong.
        """
        timeout = deadline or self._deadline
        began = time.monotonic()
        try:
            async with self.breaker.call(timeout, own=deadline is not None) as call:
                answer = await self._answer(call, method, request, timeout)
        except TimeoutError as error:
            self._lost = True
            raise BackendDown(_HANGS) from error
        except grpc.aio.AioRpcError as error:
            raise self._fault(error, time.monotonic() - began) from error
        except ResourceExhaustedResponse as error:
            raise BackendDown("The vector store has too much to do") from error
        if self._lost:
            self._lost = False
            self.regained()
        return answer

    @staticmethod
    async def _answer(call: Call, method: Callable[..., Awaitable[Any]], request: Any, timeout: float) -> Any:
        try:
            answer = await method(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                call.refused()
            elif error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
                call.heard()
            raise
        except ResourceExhaustedResponse:
            call.heard()
            raise
        call.heard()
        return answer

    def _fault(self, error: grpc.aio.AioRpcError, took: float) -> Exception:
        code, details = error.code(), error.details() or ""
        if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            self._lost = True
            return BackendDown(_HANGS if code is grpc.StatusCode.DEADLINE_EXCEEDED else _REFUSES)
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            _log.error("the vector store refuses the key: %s", details)
            return KeyRefused("The vector store refuses the key")
        if code is grpc.StatusCode.NOT_FOUND:
            _log.error("the vector store lacks a collection: %s", details)
            return NoCollection("The vector store lacks a collection")
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS):
            return QdrantRefused(details)
        _log.error("the vector store refused a request after %.0f s: %s %s", took, code.name, details)
        return BackendDown("The vector store failed")
