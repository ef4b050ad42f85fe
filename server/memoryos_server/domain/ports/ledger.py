"""Accepted work: how it is kept, how it ends, and what could not be done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.ports.memories import Change, HeatState, Session, Subject, Turn


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of one turn handed to `Turns.accept`.

    Attributes:
        memory_id: The id it is kept under.
        duplicate: It was kept before; nothing was written.
        entry: The open queue entry that asks for the rest of the work; "" for a duplicate.
        seq: The turn's place in the order of acceptance; 0 for a duplicate.
    """

    memory_id: str
    duplicate: bool
    entry: str
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """Accepted work that is not yet known to be durable on the searchable side: a turn or a change.

    Attributes:
        id: `partition/stream id`; entries of one subject are in order.
        subject: Whose.
        turn: The turn, or None.
        change: The change, or None.
        attempts: How often it was tried and failed, or was under way when a process died.
        returned: It is a change that was given up and given back: others may have come before it, of a later time. What
            was removed since is in it no more.
    """

    id: str
    subject: Subject
    turn: Turn | None = None
    change: Change | None = None
    attempts: int = 0
    returned: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an entry ends.

    Attributes:
        entry: The entry.
        state: `stored`, `merged` or `rejected`; ignored for a change.
        reason: Why, as a code such as `greeting`; "" for stored.
        related: The memory it was merged into, or "".
        fresh: Whether the turn waits to be consolidated into a segment.
    """

    entry: Entry
    state: str = "stored"
    reason: str = ""
    related: str = ""
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class EventState:
    """What became of an event.

    Attributes:
        event_id: The event.
        memory_id: Its episode.
        state: `accepted` while work is under way; then one of `stored`, `merged`, `rejected`, `dead_letter`.
        reason: A code; "" where there is none.
        related: The memory it was merged into, or "".
        changed_at: When it came to this state.
        attempts: How often the work failed so far.
    """

    event_id: str
    memory_id: str
    state: str
    reason: str = ""
    related: str = ""
    changed_at: datetime | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Work that failed too often and waits for somebody to look at it.

    Attributes:
        id: `partition-stream id` of the dead letter; safe in a path.
        subject: Whose, or None if that cannot be known any more.
        event_id: The event, "" for a change or for what cannot be opened.
        kind: `turn`, `change` or `unreadable`.
        reason: The last failure, without content.
        attempts: How often it was tried.
        failed_at: When it was given up.
        content: The turn's text, "" if there is none; only for those who may read it.
    """

    id: str
    subject: Subject | None
    event_id: str
    kind: str
    reason: str
    attempts: int
    failed_at: datetime
    content: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a partition's entries for a while.

    Attributes:
        partition: 0..255.
        token: Raised with every new holder; a write with an older one is refused.
    """

    partition: int
    token: int


class Turns(Protocol):
    """The acceptance of turns, and the newest of them (short-term memory)."""

    async def accept(
        self, subject: Subject, turns: Sequence[Turn], audit: AuditEvent | None = None, *, repeats_only: bool = False
    ) -> list[Acceptance]:
        """Keeps turns in one atomic, durable write: idempotency mark + turn + queue entry + audit event.

        All or nothing over `turns`. In order. A turn whose event_id is remembered is a duplicate and writes nothing.
        With `repeats_only` nothing is written at all: if any turn is new the answer is empty.

        Raises:
            Exists: reason `event_id_conflict`; an event_id is remembered with other content. Nothing was written.
            Stale: The subject's epoch is over. Nothing was written.
        """

    async def recent(self, subject: Subject, limit: int) -> list[Turn]:
        """The newest unexpired turns, oldest first, at most `limit`."""

    async def accepted(self, subject: Subject) -> int:
        """How many turns of a subject were accepted so far, by whichever process; the newest has this number as its `seq`."""

    async def state(self, subject: Subject, event_id: str) -> EventState | None:
        """What became of an event; None if it is not remembered (marks last 24 h at least)."""

    async def sessions(self, subject: Subject, after: str, limit: int) -> tuple[list[Session], str]:
        """Conversations, last active first, from behind the cursor `after` ("" for the beginning), and the next cursor ("" at the end)."""


class Queue(Protocol):
    """The ledger: accepted work that a crash must not lose, how it ends, and what could not be done."""

    async def submit(
        self, subject: Subject, change: Change, audit: AuditEvent | None, *, revision: int | None
    ) -> Entry:
        """Keeps a change in one atomic, durable write: queue entry + audit event, and raises the subject's revision.

        What `remove` names leaves short-term memory and the list of fresh turns in the same write; its events end as rejected, `deleted`.

        Raises:
            Stale: The subject's epoch is over, or its revision is not `revision` (None: whatever it is). Nothing was written.
            Exists: What is made once was removed within the last days: reason `event_id_conflict`. Nothing was written.
        """

    async def revision(self, subject: Subject) -> int:
        """A number that every change raises: read it before what a change is based on."""

    async def backlog(self) -> Mapping[int, int]:
        """Partition -> number of its open entries, where there are any."""

    async def open_by_tenant(self) -> Mapping[str, int]:
        """Tenant -> number of its open entries, where there are any. Reads the whole ledger, in small pieces."""

    async def claim(self, partition: int, seconds: float) -> Lease | None:
        """The right to work on a partition, or None if another process has it.

        Claimed again by its holder, it is renewed and keeps its token.
        """

    async def release(self, lease: Lease) -> None:
        """Gives a partition back."""

    def open_entries(self, partition: int, after: str = "") -> AsyncIterator[Entry]:
        """A partition's open entries in order; with `after`, the id of an entry, only those behind it.

        Those of an older epoch are closed, not given; those that do not open become dead letters.
        """

    def entries(self, partition: int, ids: Sequence[str]) -> AsyncIterator[Entry]:
        """Those of some entries of a partition that are still open, in the order given; otherwise as `open_entries`."""

    async def started(self, lease: Lease, entries: Sequence[Entry]) -> None:
        """Counts an attempt for entries that were open at start-up: whoever worked on them may have died of one.

        Raises:
            Stale: Somebody else has the partition now. Nothing was written.
        """

    async def settle(self, lease: Lease, settlements: Sequence[Settlement]) -> None:
        """Ends entries whose work is durable: each once, however often this is called. In one atomic write per partition.

        Raises:
            Stale: Somebody else has the partition now. Nothing was written.
        """

    async def failed(self, lease: Lease, entry: Entry, reason: str, *, give_up: bool) -> int:
        """Counts a failed attempt, or makes the entry a dead letter; gives the number of attempts.

        Raises:
            Stale: Somebody else has the partition now.
        """

    async def due_partitions(self, now: datetime) -> list[int]:
        """The partitions in which `due` finds somebody."""

    async def due(self, partition: int, now: datetime) -> list[Subject]:
        """The subjects of a partition whose fresh turns are due for consolidation: many, idle for long, or about to expire."""

    async def fresh(self, subject: Subject) -> list[str]:
        """The memory ids of turns that are stored but in no segment yet, oldest first."""

    async def consolidated(
        self, lease: Lease, subject: Subject, memory_ids: Sequence[str], next_due: datetime | None
    ) -> None:
        """Takes turns off the fresh list, once segments that hold them are durable.

        Raises:
            Stale: Somebody else has the partition now.
        """

    def dead_letters(self, tenant_id: str | None) -> AsyncIterator[DeadLetter]:
        """Every dead letter of a tenant (None: of all), oldest first."""

    async def requeue(self, dead_letter_id: str, tenant_id: str | None) -> bool:
        """Makes a dead letter an open entry again, with no attempts counted; False if there is no such one in the tenant (None: in any).

        A change does not put again what was removed since it was accepted; one of which nothing is left is done.
        """

    async def discard(self, dead_letter_id: str, tenant_id: str | None) -> bool:
        """Drops a dead letter for good; its event ends as rejected, `discarded`.

        False if there is no such one in the tenant (None: in any).
        """

    async def depth(self) -> int:
        """The number of open entries."""

    async def dead(self) -> int:
        """The number of dead letters of all tenants."""


class HeatStore(Protocol):
    """How often records are used."""

    async def get(self, subject: Subject, ids: Sequence[str]) -> Mapping[str, HeatState]:
        """What is known of records."""

    async def put(self, subject: Subject, states: Mapping[str, HeatState]) -> None:
        """Keeps states; those of records that were removed meanwhile do no harm."""
