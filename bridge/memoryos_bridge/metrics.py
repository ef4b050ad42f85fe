"""What the bridge counts, labelled by route template and never by path, key, user or tenant; and `GET /metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from memoryos.schema import Method
from memoryos.v1 import system_service_pb2 as system
from memoryos_bridge.errors import from_rpc, unreachable
from memoryos_bridge.exchange import Exchange
from memoryos_bridge.headers import Forwarding
from memoryos_bridge.remote import Remote

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The bridge's counters."""

    def __init__(self) -> None:
        """Makes a registry of its own."""
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "memoryos_bridge_requests", "HTTP requests answered.", ["method", "route", "code"], registry=self.registry
        )
        self._duration = Histogram(
            "memoryos_bridge_request_duration_seconds",
            "How long HTTP requests took, streams to their last byte.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "memoryos_bridge_requests_in_flight", "HTTP requests under way.", registry=self.registry
        )

        self._refused = Counter(
            "memoryos_bridge_refused", "HTTP requests refused because too many were under way.", registry=self.registry
        )

        self._refused_address = Counter(
            "memoryos_bridge_address_refused",
            "HTTP requests refused because their address had its share under way.",
            registry=self.registry,
        )

    def refuse_address(self) -> None:
        """A request was refused because its address had too many under way."""
        self._refused_address.inc()

    def refuse(self) -> None:
        """A request was refused for lack of room."""
        self._refused.inc()

    def begin(self) -> None:
        """A request begins."""
        self._in_flight.inc()

    def end(self, exchange: Exchange, seconds: float) -> None:
        """A request ends after `seconds`."""
        self._in_flight.dec()
        verb = exchange.verb if exchange.verb in _VERBS else "other"
        self._requests.labels(verb, exchange.route, str(exchange.status)).inc()
        self._duration.labels(verb, exchange.route).observe(seconds)

    def text(self) -> bytes:
        """Everything, in the Prometheus exposition format."""
        return bytes(generate_latest(self.registry))


class MetricsRoute:
    """Serves `GET /metrics`: the bridge's own text, then the server's."""

    def __init__(self, metrics: Metrics, method: Method, remote: Remote, forwarding: Forwarding) -> None:
        """Keeps what it reads."""
        self._metrics = metrics
        self._method = method
        self._remote = remote
        self._forwarding = forwarding

    async def __call__(self, exchange: Exchange, parts: Sequence[str]) -> None:
        """Serves a request; a server that cannot be reached adds nothing.

        Raises:
            BridgeError: The server refused.
            ClientGone: The client left.
        """
        metadata = self._forwarding.metadata(exchange)
        theirs = b""
        try:
            response = await self._remote.call(exchange, self._method, system.GetMetricsRequest(), metadata)
            if isinstance(response, system.GetMetricsResponse):
                theirs = response.text.encode()
        except grpc.aio.AioRpcError as error:
            if not unreachable(error):
                raise from_rpc(error) from None
        # Off the loop: thousands of series take milliseconds to write.
        ours = await asyncio.to_thread(self._metrics.text)
        await exchange.answer(200, ours + theirs, content_type=CONTENT_TYPE)
