"""What the server counts, and the listener where Prometheus fetches it.

Labels are methods, codes, stores and models: never a user, a tenant, a key or a raw path.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from memoryos.addresses import split_address
from memoryos.settings import SettingsError
from memoryos_server.domain.core.tokens import Tokens
from memoryos_server.domain.shield.detection import IDS as PATTERN_IDS

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)


class Metrics:
    """The server's metrics, in a registry of their own.

    Attributes:
        registry: Where further metrics of the process are registered.
        requests: Calls by method and code.
        duration: Seconds from first to last byte of a call.
        in_flight: Calls under way.
        backend_up: 1 while a store (`redis`, `qdrant`) answers, else 0.
        breaker_open: 1 while calls of a store fail at once because it does not answer, else 0.
        refused: Calls refused because a bound was reached: `calls`, `backlog`, `tenant_backlog`, `address`, `key`; or because
            of a `ban`.
        upstream: Seconds that the provider took to begin an answer, by outcome.
        llm_tokens: Tokens of chats by model, direction, and whether they are an estimate.
        budget_refused: Chats refused because their key's budget of `requests` or `tokens` is used up.
        injections: Calls whose texts look like an attempt on a model, by pattern.
        audit_dropped: Events that could not be kept because the store was down for too long.
        audit_refused: What stood in outboxes of events and no server had written so.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # The prefix keeps these apart from the bridge's own, which are served beside them.
        ProcessCollector(namespace="memoryos_server", registry=self.registry)
        self.requests = Counter(
            "memoryos_rpc_requests", "Calls that have ended.", ("method", "code"), registry=self.registry
        )
        self.duration = Histogram(
            "memoryos_rpc_duration_seconds",
            "How long calls took.",
            ("method",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge("memoryos_rpc_in_flight", "Calls under way.", ("method",), registry=self.registry)
        self.backend_up = Gauge("memoryos_backend_up", "Whether a store answers.", ("backend",), registry=self.registry)
        self.breaker_open = Gauge(
            "memoryos_breaker_open",
            "Whether calls of a store fail at once, because it does not answer.",
            ("backend",),
            registry=self.registry,
        )
        self.refused = Counter(
            "memoryos_refused",
            "Calls that were refused because a bound was reached, or the address is banned.",
            ("limit",),
            registry=self.registry,
        )
        for limit in ("calls", "backlog", "tenant_backlog", "address", "key", "ban"):
            self.refused.labels(limit)
        self.upstream = Histogram(
            "memoryos_upstream_first_byte_seconds",
            "How long requests to the provider took until their answer began, or until they failed.",
            ("outcome",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        for outcome in ("ok", "rejected", "failed", "timeout"):
            self.upstream.labels(outcome)
        self.llm_tokens = Counter(
            "memoryos_llm_tokens",
            "Tokens of chats: what models read and wrote, and which part of it was cached, reasoning, or memories.",
            ("model", "direction", "estimated"),
            registry=self.registry,
        )
        self.budget_refused = Counter(
            "memoryos_budget_refused",
            "Chats that were refused because the budget of their key is used up.",
            ("bound",),
            registry=self.registry,
        )
        for bound in ("requests", "tokens"):
            self.budget_refused.labels(bound)
        self.injections = Counter(
            "memoryos_injection_suspected",
            "Calls whose texts look like an attempt to take a model over.",
            ("pattern",),
            registry=self.registry,
        )
        for name in PATTERN_IDS:
            self.injections.labels(name)
        self.audit_dropped = Counter("memoryos_audit_dropped", "Audit events that were lost.", registry=self.registry)
        self.audit_refused = Counter(
            "memoryos_audit_refused", "Audit events that somebody changed or put in.", registry=self.registry
        )

    def answered(self, outcome: str, seconds: float) -> None:
        """A request to the provider began to be answered, or failed: `ok`, `rejected`, `failed` or `timeout`."""
        self.upstream.labels(outcome).observe(seconds)

    def spent(self, model: str, tokens: Tokens) -> None:
        """A chat cost so many tokens.

        Args:
            model: The model's name, one of a bounded number.
            tokens: What it cost.
        """
        estimated = "true" if tokens.estimated else "false"
        for direction in ("input", "output", "cached", "reasoning"):
            self.llm_tokens.labels(model, direction, estimated).inc(getattr(tokens, direction))
        self.llm_tokens.labels(model, "injected", "true").inc(tokens.injected)

    def suspected(self, pattern: str) -> None:
        """A call's texts look like an attempt on a model, by a published pattern."""
        self.injections.labels(pattern).inc()

    def over_budget(self, bound: str) -> None:
        """A chat was refused: the `requests` or `tokens` of its key are used up."""
        self.budget_refused.labels(bound).inc()

    async def text(self) -> str:
        """Every metric in the Prometheus text format, written off the event loop."""
        data: bytes = await asyncio.to_thread(generate_latest, self.registry)
        return data.decode()


class MetricsListener:
    """Serves `GET /metrics` on a port of its own, which no bridge stands in front of."""

    def __init__(self, metrics: Metrics, listen: str) -> None:
        """Keeps where to listen.

        Args:
            metrics: What is served.
            listen: `host:port`; "" serves nothing.
        """
        self._metrics = metrics
        self._listen = listen
        self._runner: web.AppRunner | None = None
        self.address = ""

    async def __aenter__(self) -> MetricsListener:
        if not self._listen:
            return self
        host, port = split_address(self._listen, "server.metrics_listen")
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise SettingsError(f"server.metrics_listen: cannot listen on {self._listen}: {error.strerror}") from None
        self._runner = runner
        name = runner.addresses[0]
        shown = f"[{name[0]}]" if ":" in name[0] else name[0]
        self.address = f"{shown}:{name[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, _request: web.Request) -> web.Response:
        text = await self._metrics.text()
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
