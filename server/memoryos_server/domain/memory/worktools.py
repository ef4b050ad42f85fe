"""What the background work of a process is done with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime

from memoryos_server.domain.memory.counts import Counts, Uncounted
from memoryos_server.domain.memory.fairness import Slots
from memoryos_server.domain.memory.flushing import Flusher
from memoryos_server.domain.memory.indexing import Indexing
from memoryos_server.domain.memory.model import Consolidation, Digest
from memoryos_server.domain.memory.progress import Locks, Progress
from memoryos_server.domain.ports import Queue, Subject
from memoryos_server.domain.ports.consents import EVERYBODY, Consents

LEASE_SECONDS = 15.0
"""How long a partition stays with a process that says nothing more."""


@dataclass(slots=True)
class Tools:
    """What every partition of a process works with.

    Attributes:
        slots: Where partitions work.
        looks: How many partitions may look for work at once.
        alone: Held while a suspicious entry is worked on.
        backoff: Seconds before the second attempt of a failed entry.
        successes: How many entries were worked on without failing.
        counts: Is told what was done.
        lease_seconds: How long a lease lasts.
        consents: Who may be remembered.
        sweep: Takes turns that are gone out of derived memory, where other processes may have taken them back; or None.
    """

    queue: Queue
    indexing: Indexing
    flusher: Flusher
    locks: Locks
    progress: Progress
    digest: Digest | None
    consolidation: Consolidation | None
    now: Callable[[], datetime]
    slots: Slots
    looks: asyncio.Semaphore
    alone: asyncio.Lock
    backoff: float
    successes: int = 0
    counts: Counts = field(default_factory=Uncounted)
    lease_seconds: float = LEASE_SECONDS
    consents: Consents = EVERYBODY
    sweep: Callable[[Subject, Collection[str]], Awaitable[None]] | None = None
