"""How the domain reaches the world: a handful of small protocols.

Names say behaviour, not technology. Adapters seal what they store; nothing here knows of it. Every method may raise
`BackendDown`. Cancelling a call that has been acknowledged undoes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from memoryos_server.domain.core.audit import AuditEvent


@dataclass(frozen=True, slots=True)
class Subject:
    """A (tenant, user) as the stores know it.

    Attributes:
        id: 32 hex digits, random; the first two are the partition.
        tenant_id: The tenant.
        user_id: The user.
        epoch: Raised by an erasure; work of an older epoch is dropped.
    """

    id: str
    tenant_id: str
    user_id: str
    epoch: int

    @property
    def partition(self) -> int:
        """The partition, 0..255."""
        return int(self.id[:2], 16)


@dataclass(frozen=True, slots=True)
class Turn:
    """What somebody said, verbatim and immutable: an episode of memory.

    Attributes:
        id: The memory id: a UUID that follows from (tenant, subject, event_id).
        event_id: The idempotency id.
        session_id: The conversation, "" if none.
        role: `user`, `assistant` or `system`.
        name: The speaker, "" if none.
        content: The text.
        timestamp: When it was said, UTC.
        seq: Its place in the order of acceptance among the subject's turns, from 1; 0 before it is accepted.
    """

    id: str
    event_id: str
    session_id: str
    role: str
    name: str
    content: str
    timestamp: datetime
    seq: int = 0


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


KINDS = ("segment", "fact", "memory")
"""The kinds of records."""


@dataclass(frozen=True, slots=True)
class Record:
    """A memory that is derived from episodes, or that somebody wrote down: segment, fact, typed memory.

    The stores know this form of it only; its domain room has another. Equal filters find it by kind, type, tag, session and source.

    Attributes:
        id: A UUID.
        kind: One of `KINDS`.
        version: From 1; a put with a lower one than is stored changes nothing.
        text: What search goes by.
        type: The label within its kind: a segment's `qa`, `faq_candidate`, `faq`; a memory's `rule`, `fact`, `context`; a fact's predicate.
        tags: Labels, in order.
        sources: Memory ids of the episodes it came from.
        session_id: The conversation it came from, "" if none or several.
        created_at: When its first version was made.
        updated_at: When this version was made.
        since: From when it was believed; a search as of an earlier time does not find it.
        until: From when it was no longer believed, or None; a search as of a later time, or of now, does not find it.
        data: What else its kind keeps: JSON values.
        history: Older versions as their kind keeps them (JSON objects), newest first. Reads leave it out unless asked for it.
    """

    id: str
    kind: str
    version: int
    text: str
    type: str
    created_at: datetime
    updated_at: datetime
    since: datetime
    until: datetime | None = None
    tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    session_id: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A change of memory that somebody asked for: accepted first, then applied to the searchable side, again after a crash.

    Attributes:
        put: Records as they shall be, history included.
        remove: Ids of records and episodes to remove, with what short-term memory and the ledger hold of them.
        heat: Record id -> heat to set (imports bring theirs).
        embed: Whether records are findable by meaning when the change is applied; else words only, and meaning follows.
        events: Of each episode in `remove`: memory id -> (event_id, session_id), by which the ledger knows it.
    """

    put: tuple[Record, ...] = ()
    remove: tuple[str, ...] = ()
    heat: Mapping[str, HeatState] = field(default_factory=dict)
    embed: bool = True
    events: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeatState:
    """How warm a record is.

    Attributes:
        heat: Its heat at `last_accessed`; it decays from there (`domain/memory/heat`).
        count: How often it was returned or injected.
        last_accessed: When last; its creation counts as the first time.
    """

    heat: float
    count: int
    last_accessed: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """Accepted work that is not yet known to be durable on the searchable side: a turn or a change.

    Attributes:
        id: `partition/stream id`; entries of one subject are in order.
        subject: Whose.
        turn: The turn, or None.
        change: The change, or None.
        attempts: How often it was tried and failed, or was under way when a process died.
    """

    id: str
    subject: Subject
    turn: Turn | None = None
    change: Change | None = None
    attempts: int = 0


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


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation as it is listed.

    Attributes:
        id: The session id; "" for turns without one.
        turns: How many turns it has.
        first_at: When the earliest of them was said.
        last_at: When the latest of them was said.
    """

    id: str
    turns: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class IndexedTurn:
    """A turn with what search needs.

    Attributes:
        turn: The turn.
        terms: Term -> weight in this document (BM25's term-frequency part; IDF is applied by the store).
        dense: Named dense vectors, unit length, float32 values; may be empty.
        names: The words of its speaker's name, folded; kept as keyed hashes.
        hints: A few small numbers for ranking, kept readable: they must not tell what was said.
    """

    turn: Turn
    terms: Mapping[str, float]
    dense: Mapping[str, Sequence[float]]
    names: tuple[str, ...] = ()
    hints: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexedRecord:
    """A record with what search needs; `dense` may be empty, and come later."""

    record: Record
    terms: Mapping[str, float]
    dense: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A question to episodes as search needs it.

    Attributes:
        lexical: Leg name -> (term -> weight in the query); each leg is scored by itself.
        dense: Named dense vectors of the query, each a leg; may be empty.
        limit: Candidates per leg.
        until: Only turns said at or before this time, or None.
        names: Words that may name a speaker, folded.
        parts: The names of lexical legs that only score what other legs found: they bring no candidates of their own.
    """

    lexical: Mapping[str, Mapping[str, float]]
    dense: Mapping[str, Sequence[float]]
    limit: int
    until: datetime | None = None
    names: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()


@dataclass(slots=True)  # not frozen, which would cost four times as much to make, and a search makes hundreds
class Candidate:
    """A turn that at least one leg found: numbers only, since most candidates are never shown.

    Attributes:
        id: The memory id.
        seq: The turn's place in the order of acceptance.
        session: Stands for its session: equal for turns of one, "" for none.
        at: When it was said, Unix seconds.
        hints: What was indexed with it.
        named: The query's `names` have a word of its speaker's name.
        scores: Leg -> raw score: BM25, or cosine for a dense one. A leg that did not find it is absent.
    """

    id: str
    seq: int
    session: str
    at: float
    hints: tuple[float, ...] = ()
    named: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordQuery:
    """A search among records of one kind.

    Attributes:
        kind: One of `KINDS`.
        terms: Term -> weight.
        dense: Named dense vectors; may be empty.
        limit: Hits per leg.
        type: Only of this type, or None.
        as_of: What was believed at this time; None: now.
    """

    kind: str
    terms: Mapping[str, float]
    dense: Mapping[str, Sequence[float]]
    limit: int
    type: str | None = None
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True)
class RecordHit:
    """A record that a search found: `scores` has `lexical` (BM25) and one per dense name (cosine); absent where a leg did not find it."""

    record: Record
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records to list; all conditions hold together.

    Attributes:
        kind: One of `KINDS`.
        type: Of this type, or None.
        tags: With these tags; none: whatever tags.
        match_all: With all of `tags`, else with any.
        sources: That came from any of these episodes; none: from whatever.
        current: Leaves out what is no longer believed.
    """

    kind: str
    type: str | None = None
    tags: tuple[str, ...] = ()
    match_all: bool = False
    sources: tuple[str, ...] = ()
    current: bool = False


class Subjects(Protocol):
    """Who the stores know."""

    async def find(self, tenant_id: str, user_id: str) -> Subject | None:
        """The subject, or None if the user was never heard of. Cached, bounded."""

    async def open(self, tenant_id: str, user_id: str) -> Subject:
        """The subject, made if need be. Its key is durable before this returns; concurrent calls give one subject."""

    async def by_id(self, subject_id: str) -> Subject | None:
        """The subject of an id, or None."""


class Turns(Protocol):
    """The acceptance of turns, and the newest of them (short-term memory)."""

    async def accept(
        self, subject: Subject, turns: Sequence[Turn], audit: AuditEvent | None = None
    ) -> list[Acceptance]:
        """Keeps turns in one atomic, durable write: idempotency mark + turn + queue entry + audit event.

        All or nothing over `turns`. In order. A turn whose event_id is remembered is a duplicate and writes nothing.

        Raises:
            Exists: reason `event_id_conflict`; an event_id is remembered with other content. Nothing was written.
            Stale: The subject's epoch is over. Nothing was written.
        """

    async def recent(self, subject: Subject, limit: int) -> list[Turn]:
        """The newest unexpired turns, oldest first, at most `limit`."""

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
        """

    async def revision(self, subject: Subject) -> int:
        """A number that every change raises: read it before what a change is based on."""

    async def backlog(self) -> Mapping[int, int]:
        """Partition -> number of its open entries, where there are any."""

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
        """Makes a dead letter an open entry again, with no attempts counted; False if there is no such one in the tenant (None: in any)."""

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


class Vectors(Protocol):
    """The searchable side of memory. Reads see every write that returned; only `flush` makes writes survive a crash."""

    async def insert(self, subject: Subject, turns: Sequence[IndexedTurn]) -> int:
        """Adds turns that are not there yet; one that is stays as it is.

        Returns:
            The incarnation of the engine that took them: a number that changes when it was restarted.
        """

    async def search(self, subject: Subject, query: SearchQuery) -> list[Candidate]:
        """The union of what each leg finds among the subject's turns, in no order."""

    async def put(self, subject: Subject, records: Sequence[IndexedRecord]) -> int:
        """Adds records, or replaces those whose version is not higher; all become visible at once. Gives the incarnation."""

    async def find(self, subject: Subject, queries: Sequence[RecordQuery]) -> list[list[RecordHit]]:
        """For each query, the union of what its legs find among the subject's records, in no order."""

    async def records(self, subject: Subject, ids: Sequence[str], *, history: bool = False) -> list[Record]:
        """Those of the subject's records that exist, in no order."""

    async def page(
        self, subject: Subject, chosen: RecordFilter, offset: int, limit: int, *, history: bool = False
    ) -> tuple[list[Record], int]:
        """Records newest first (by `created_at`, then id), from `offset`, and how many there are in all."""

    def scan(self, subject: Subject, chosen: RecordFilter, *, history: bool = False) -> AsyncIterator[Record]:
        """Every such record, in the order of ids, read in pieces."""

    async def remove(self, subject: Subject, ids: Sequence[str]) -> int:
        """Removes the subject's episodes and records of these ids from every answer. Gives the incarnation."""

    async def said(self, subject: Subject, session_id: str, after: int, limit: int) -> list[Turn]:
        """A session's turns in the order of acceptance, those with a `seq` above `after`."""

    async def near(self, subject: Subject, dense: Mapping[str, Sequence[float]], limit: int) -> list[tuple[str, float]]:
        """The ids of the turns closest in meaning, with their cosines, best first."""

    async def get(self, subject: Subject, ids: Sequence[str]) -> list[Turn]:
        """Those of the subject's turns that exist, in no order."""

    async def owner(self, memory_id: str) -> str | None:
        """The subject id that a memory belongs to, or None."""

    async def flush(self) -> int:
        """Returns once every write that this incarnation of the engine took before this call is durable.

        Returns:
            The incarnation. Writes that another one took may be lost and must be repeated.
        """


class AuditLog(Protocol):
    """The outbox of recorded events, per tenant, append-only."""

    async def append(self, events: Sequence[AuditEvent]) -> None:
        """Records events durably, in order. The same events given again, after an error, are not recorded twice."""

    def tail(self, tenant_id: str | None, limit: int) -> AsyncIterator[AuditEvent]:
        """The newest events of a tenant (None: of all), oldest of them first."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the store knows it: everything but the key.

    Attributes:
        id: `key_` + 16 hex digits.
        user_id: Its user.
        tenant_id: Its tenant; `*` may name any.
        permissions: What it may do.
        description: For people.
        created_at: When it was made.
        expires_at: When it ends, or None.
        last_used_at: When it was last seen, or None. At most a minute late.
    """

    id: str
    user_id: str
    tenant_id: str
    permissions: frozenset[str]
    description: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = None


class ApiKeys(Protocol):
    """API keys, stored as keyed hashes."""

    async def find(self, key: str) -> ApiKey | None:
        """The record of a key, or None. Cached at most 60 s while the store is up."""

    async def create(self, key: str, record: ApiKey) -> None:
        """Keeps a key.

        Raises:
            Exists: The key is there already.
        """

    async def list(self) -> list[ApiKey]:
        """Every key, oldest first."""

    async def revoke(self, key_or_id: str) -> ApiKey | None:
        """Removes a key by itself or by its id, at once on every replica; None if there is no such key."""


class Embedder(Protocol):
    """Meaning as vectors."""

    @property
    def names(self) -> Mapping[str, int]:
        """Vector name -> dimension; empty where no model is there."""

    async def embed(self, texts: Sequence[str]) -> list[Mapping[str, Sequence[float]]]:
        """For each text, vector name -> unit vector. A vector that cannot tell anything of a text is left out."""


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """A provider's whole answer.

    Attributes:
        body: Its bytes.
        content_type: Its content type.
    """

    body: bytes
    content_type: str


class Llm(Protocol):
    """One LLM provider in OpenAI's dialect.

    Errors before the first byte are faults: `UpstreamRejected` (400, 404, 413, 422, 429), `Upstream` (our key refused, 5xx,
    connection), `DeadlineExceeded`. Cancelling or closing a call closes the connection at once.
    """

    async def complete(self, body: bytes) -> ProviderAnswer:
        """The answer to a chat completion request."""

    def stream(self, body: bytes) -> AsyncIterator[bytes]:
        """The raw SSE bytes as they come, in pieces of any size.

        Raises:
            Upstream: Midway; the connection broke or fell silent.
        """

    async def models(self) -> list[Mapping[str, object]]:
        """The provider's models, in OpenAI's shape; empty if it has no list."""
