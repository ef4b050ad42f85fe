"""What is counted of memory's background work, beside the calls: the ledger, ends of events, records, embedding.

Labels are states and kinds: never a user or a tenant.
"""

from __future__ import annotations

import asyncio
import logging
import math

from prometheus_client import Counter, Gauge

from memoryos_server.domain.core.faults import Fault
from memoryos_server.domain.memory.deadletters import DeadLetters
from memoryos_server.rpc.metrics import Metrics

log = logging.getLogger(__name__)

_INTERVAL = 5.0


class MemoryMetrics:
    """`domain.memory.counts.Counts`, and the gauges of the ledger.

    Args:
        metrics: Where they are registered.
        max_backlog: How much may be open, for alerts; 0: any amount.

    Attributes:
        queue_depth: Open entries (`open`) and dead letters (`dead_letter`) of all tenants.
        queue_oldest: Seconds that the oldest open entry waits.
    """

    def __init__(self, metrics: Metrics, max_backlog: int = 0) -> None:
        registry = metrics.registry
        self._refused = metrics.refused
        self.queue_depth = Gauge(
            "memoryos_queue_depth", "Accepted work: not done yet, or given up.", ("kind",), registry=registry
        )
        self.queue_oldest = Gauge(
            "memoryos_queue_oldest_seconds", "How long the oldest open entry waits.", registry=registry
        )
        limit = Gauge(
            "memoryos_queue_limit", "How much accepted work may wait; infinite if any amount.", registry=registry
        )
        limit.set(max_backlog or math.inf)
        self._remembered = Counter(
            "memoryos_chats_remembered",
            "Completed chats by whether they are known to be kept.",
            ("kept",),
            registry=registry,
        )
        for kept in ("true", "false"):
            self._remembered.labels(kept)
        self._ended = Counter(
            "memoryos_events_ended", "Events that came to their end in this process.", ("state",), registry=registry
        )
        self._consolidations = Counter(
            "memoryos_consolidations", "How often fresh turns were made into segments.", registry=registry
        )
        self._wrote = Counter(
            "memoryos_records_written", "Versions of derived memories that were written.", ("kind",), registry=registry
        )
        self._embedding = Gauge(
            "memoryos_embedding_memories",
            "Memories when they were last looked over: all, and those that the models in use have embedded.",
            ("kind",),
            registry=registry,
        )
        for state in ("stored", "merged", "rejected", "dead_letter"):
            self._ended.labels(state)
        for kind in ("segment", "fact"):
            self._wrote.labels(kind)
        for kind in ("total", "embedded"):
            self._embedding.labels(kind)

    def ended(self, state: str) -> None:
        """An event came to its end."""
        self._ended.labels(state).inc()

    def consolidated(self) -> None:
        """The fresh turns of a subject were gone through."""
        self._consolidations.inc()

    def wrote(self, kind: str, records: int) -> None:
        """Versions of records were written."""
        self._wrote.labels(kind).inc(records)

    def refused(self, limit: str) -> None:
        """Work was refused, because as much waits as may."""
        self._refused.labels(limit).inc()

    def remembered(self, kept: bool) -> None:
        """A completed chat was handed to memory."""
        self._remembered.labels("true" if kept else "false").inc()

    def embedded(self, total: int, embedded: int) -> None:
        """So many memories there are, and so many of them are embedded."""
        self._embedding.labels("total").set(total)
        self._embedding.labels("embedded").set(embedded)


class QueueWatch:
    """Keeps the gauges of the ledger up to date from entry to exit.

    Args:
        letters: Who knows the ledger.
        metrics: Whose gauges.
        interval: Seconds from one look to the next.
    """

    def __init__(self, letters: DeadLetters, metrics: MemoryMetrics, interval: float = _INTERVAL) -> None:
        self._letters = letters
        self._metrics = metrics
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> QueueWatch:
        self._task = asyncio.create_task(self._watch(), name="queue-watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _watch(self) -> None:
        while True:
            try:
                totals = await self._letters.totals()
                self._metrics.queue_depth.labels("open").set(totals.depth)
                self._metrics.queue_depth.labels("dead_letter").set(totals.dead)
                self._metrics.queue_oldest.set(totals.oldest_seconds)
            except Fault:
                pass  # the ledger is down, which `memoryos_backend_up` says; the last numbers stand
            except Exception:
                log.exception("the queue could not be looked at")
            await asyncio.sleep(self._interval)
