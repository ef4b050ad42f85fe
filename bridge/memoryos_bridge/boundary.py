"""Where a request enters and leaves: its id, its line in the log, its counts, and an answer whatever happens inside.

Pure ASGI, so that the client's leaving stays visible to what is inside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from memoryos import tracing
from memoryos.tracing import NO_SPANS, Spans, Value
from memoryos_bridge.errors import BridgeError, ClientGone, Cut, internal
from memoryos_bridge.exchange import BODY_IDLE_SECONDS, KEY, Exchange
from memoryos_bridge.guards import Guards
from memoryos_bridge.headers import request_id
from memoryos_bridge.logs import describe
from memoryos_bridge.metrics import Metrics

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_GONE = 499
"""How logs and metrics show a client that left first; nobody is sent it."""

_CORS_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_CORS_EXPOSED = (
    "X-Request-ID, X-MemoryOS-Status, X-MemoryOS-Memories, X-MemoryOS-Source, X-MemoryOS-Remembered, "
    "X-MemoryOS-Event-ID, X-MemoryOS-Session-ID, X-MemoryOS-Provider, X-MemoryOS-Dropped, "
    "X-MemoryOS-Receipt, X-MemoryOS-Reason, Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset"
)


class Boundary:
    """Wraps the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        log: FilteringBoundLogger,
        cors_origins: Sequence[str] = (),
        guards: Guards | None = None,
        body_idle: float = BODY_IDLE_SECONDS,
        spans: Callable[[], Spans] = lambda: NO_SPANS,
    ) -> None:
        """Keeps what it wraps; `spans` is asked anew for each request, because it is opened later."""
        self._spans = spans
        self._app = app
        self._metrics = metrics
        self._log = log
        self._origins = frozenset(cors_origins)
        self._guards = guards or Guards()
        self._body_idle = body_idle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request; other scopes pass."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        exchange = Exchange(scope, receive, send, body_idle=self._body_idle)
        exchange.request_id = request_id(exchange)
        exchange.extra["X-Request-ID"] = exchange.request_id
        self._guards.put(exchange)
        scope[KEY] = exchange
        parents = exchange.headers.get("traceparent", (b"",))
        states = b",".join(exchange.headers.get("tracestate", ())).decode("latin-1")
        # Until the request's task ends. Also without any: the task of a pipelined request begins where the one before ended.
        tracing.enter(tracing.received(parents[0].decode("latin-1"), states))
        self._metrics.begin()
        spans = self._spans()
        try:
            if spans.on:
                await self._traced(spans, exchange, scope, receive, send)
            elif not await self._preflight(exchange):
                await self._serve(exchange, scope, receive, send)
        finally:
            if not exchange.completed:
                exchange.status = exchange.status if exchange.code else _GONE
            seconds = time.perf_counter() - began
            self._metrics.end(exchange, seconds)
            self._line(exchange, seconds)
            del scope[
                KEY
            ]  # each holds the other, with the request's body: they would stay until the garbage collector comes

    async def _traced(self, spans: Spans, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request within a span."""
        about: dict[str, Value] = {"http.request.method": exchange.verb, "url.scheme": scope.get("scheme", "http")}
        with spans.server(exchange.verb, about) as span:
            hop = tracing.current()
            exchange.trace_id = hop.trace_id if hop else ""
            if not await self._preflight(exchange):
                await self._serve(exchange, scope, receive, send)
            span.rename(f"{exchange.verb} {exchange.route}")
            status = exchange.status if exchange.completed or exchange.code else _GONE
            span.note({"http.route": exchange.route, "http.response.status_code": status})
            if status >= 500:
                span.fail(str(status))

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            try:
                await self._app(scope, receive, send)
            except BridgeError as error:
                if exchange.started:
                    raise Cut(error) from None
                await exchange.fail(error)
        except ClientGone:
            exchange.code = ""
        except Cut as cut:
            # Returning without the end of the body makes the HTTP server abort the connection.
            exchange.code = cut.cause.code
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._log.error("crash", request_id=exchange.request_id, route=exchange.route, exception=describe(error))
            if exchange.started:
                exchange.code = "internal"
                return
            await exchange.fail(internal())

    async def _preflight(self, exchange: Exchange) -> bool:
        """Lets pages of a configured origin read the answer; returns whether the request is answered by that."""
        origins = exchange.headers.get("origin", [])
        if not self._origins or len(origins) != 1:
            return False
        origin = origins[0].decode("latin-1")
        exchange.extra["Vary"] = "Origin"
        if origin not in self._origins and "*" not in self._origins:
            return False
        exchange.extra["Access-Control-Allow-Origin"] = origin if origin in self._origins else "*"
        exchange.extra["Access-Control-Expose-Headers"] = _CORS_EXPOSED
        if exchange.verb != "OPTIONS" or "access-control-request-method" not in exchange.headers:
            return False
        asked = exchange.headers.get("access-control-request-headers", [b""])[0].decode("latin-1")
        exchange.route = "preflight"
        headers = {"Access-Control-Allow-Methods": _CORS_METHODS, "Access-Control-Max-Age": "600"}
        if asked:
            headers["Access-Control-Allow-Headers"] = asked
        await exchange.answer(200, b"", content_type="text/plain", headers=headers)
        return True

    def _line(self, exchange: Exchange, seconds: float) -> None:
        client = exchange.scope.get("client")
        fields = {
            "method": exchange.verb,
            "route": exchange.route,
            "status": exchange.status,
            "code": exchange.code,
            "duration_ms": round(seconds * 1000, 3),
            "request_id": exchange.request_id,
            "peer": client[0] if client else "",
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            "degraded": "X-MemoryOS-Status" in exchange.extra,
            "complete": exchange.completed,
        }
        hop = tracing.current()
        if trace_id := exchange.trace_id or (hop.trace_id if hop else ""):
            fields["trace_id"] = trace_id
        if exchange.status >= 500 and exchange.status != 503:
            self._log.warning("http", **fields)
        else:
            self._log.info("http", **fields)
