"""How the domain reaches the world: a handful of small protocols.

Names say behaviour, not technology. Adapters seal what they store; nothing here knows of it. Every method may raise
`BackendDown`. Cancelling a call that has been acknowledged undoes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

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
    """

    id: str
    event_id: str
    session_id: str
    role: str
    name: str
    content: str
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of one turn handed to `Turns.accept`.

    Attributes:
        memory_id: The id it is kept under.
        duplicate: It was kept before; nothing was written.
        entry: The open queue entry to close once indexed; "" for a duplicate.
    """

    memory_id: str
    duplicate: bool
    entry: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An accepted turn whose index entry is not yet known to be durable."""

    id: str
    subject: Subject
    turn: Turn


@dataclass(frozen=True, slots=True)
class IndexedTurn:
    """A turn with what search needs.

    Attributes:
        turn: The turn.
        terms: Term -> weight in this document (BM25's term-frequency part; IDF is applied by the store).
        dense: Named dense vectors, unit length, float32 values; may be empty.
    """

    turn: Turn
    terms: Mapping[str, float]
    dense: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A question as search needs it.

    Attributes:
        terms: Term -> weight in the query.
        dense: Named dense vectors of the query; may be empty.
        limit: Candidates per leg.
        until: Only turns said at or before this time, or None.
    """

    terms: Mapping[str, float]
    dense: Mapping[str, Sequence[float]]
    limit: int
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A turn that at least one leg found.

    Attributes:
        turn: The turn.
        scores: Leg -> raw score: `lexical` (BM25), and one per dense name (cosine). A leg that did not find it is absent.
    """

    turn: Turn
    scores: Mapping[str, float] = field(default_factory=dict)


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


class Queue(Protocol):
    """The open window of the ledger: entries that a crash must not lose."""

    def open_entries(self) -> AsyncIterator[Entry]:
        """Every open entry of every partition, in order within a partition. Entries of an older epoch are closed, not given."""

    async def close(self, entries: Sequence[Entry]) -> None:
        """Forgets entries whose index writes are durable. Idempotent."""

    async def depth(self) -> int:
        """The number of open entries."""


class Vectors(Protocol):
    """The searchable side of memory. Reads see every write that returned; only `flush` makes writes survive a crash."""

    async def insert(self, subject: Subject, turns: Sequence[IndexedTurn]) -> int:
        """Adds turns that are not there yet; one that is stays as it is.

        Returns:
            The incarnation of the engine that took them: a number that changes when it was restarted.
        """

    async def search(self, subject: Subject, query: SearchQuery) -> list[Candidate]:
        """The union of what each leg finds among the subject's turns, in no order."""

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
