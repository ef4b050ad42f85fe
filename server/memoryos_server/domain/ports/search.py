"""The searchable side of memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.ports.candidates import Candidates
from memoryos_server.domain.ports.memories import Record, Subject, Turn


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
        most: Only the best so many of all hits, by words against the best's and the best cosine; None: all.
    """

    kind: str
    terms: Mapping[str, float]
    dense: Mapping[str, Sequence[float]]
    limit: int
    type: str | None = None
    as_of: datetime | None = None
    most: int | None = None


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


class Vectors(Protocol):
    """The searchable side of memory. Reads see every write that returned; only `flush` makes writes survive a crash."""

    async def insert(self, subject: Subject, turns: Sequence[IndexedTurn]) -> int:
        """Adds turns that are not there yet; one that is stays as it is.

        Returns:
            The incarnation of the engine that took them: a number that changes when it was restarted.
        """

    async def search(
        self, subject: Subject, query: SearchQuery, later: Awaitable[Mapping[str, Sequence[float]]] | None = None
    ) -> Candidates:
        """The union of what each leg finds among the subject's turns, in no order.

        Args:
            subject: Whose turns.
            query: The question.
            later: Dense vectors that are still being made and join the query's: words may be looked up meanwhile.
        """

    async def put(self, subject: Subject, records: Sequence[IndexedRecord]) -> int:
        """Adds records, or replaces those whose version is not higher. Gives the incarnation.

        Each becomes visible as a whole; all of them at once only where the engine can do that, else in pieces of many.
        """

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

    async def said(self, subject: Subject, session_id: str | None, after: int, limit: int) -> list[Turn]:
        """A session's turns (None: those of all) in the order of acceptance, those with a `seq` above `after`."""

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
