"""The recall engine without a server around it: the same code, minus the wire and the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

from bench.recall.sets import Line
from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.ports import Candidates, Embedder, IndexedTurn, SearchQuery, Subject, Turn
from memoryos_server.domain.recall.analysis import Analysis
from memoryos_server.domain.recall.engine import RecallEngine
from memoryos_server.domain.recall.scoring import Weights
from memoryos_server.stores.sealing import Sealer
from memoryos_server.tools.words import Words


class Unsealed:
    """Sealers that keep what they are given readable: nothing here outlives the run."""

    async def sealer(self, subject: Subject) -> Sealer:
        """A sealer of the subject's own hashes."""
        return Sealer(hashlib.sha256(subject.id.encode()).digest(), subject.tenant_id, subject.id, sealing=False)


class Searchable(Protocol):
    """What recall needs of a vector store."""

    async def insert(self, subject: Subject, turns: Sequence[IndexedTurn]) -> int:
        """As `domain.ports.Vectors`."""

    async def search(
        self, subject: Subject, query: SearchQuery, later: Awaitable[Mapping[str, Sequence[float]]] | None = None
    ) -> Candidates:
        """As `domain.ports.Vectors`."""

    async def get(self, subject: Subject, ids: Sequence[str]) -> list[Turn]:
        """As `domain.ports.Vectors`."""


class EngineMemory:
    """The recall engine over a vector store."""

    def __init__(self, vectors: Searchable, embedder: Embedder, weights: Weights | None = None) -> None:
        """Builds the engine."""
        words = Words()
        self.vectors = vectors
        self.embedder = embedder
        self.analysis = Analysis(words.stem, words.fold)
        self.engine = RecallEngine(vectors, embedder, self.analysis, weights)

    async def add(self, user: str, lines: Sequence[Line]) -> None:
        """Indexes a user's turns."""
        subject = subject_of(user)
        turns = [
            Turn(
                id=derived_uuid("bench", subject.id, line.id),
                event_id=line.id,
                session_id=line.session,
                role=line.role,
                name=line.name,
                content=line.text,
                timestamp=line.time,
                seq=place,
            )
            for place, line in enumerate(lines, 1)
        ]
        await self.vectors.insert(subject, await self.engine.index(turns))

    async def retrieve(self, user: str, question: str, limit: int, max_tokens: int | None = None) -> list[str]:
        """Asks the engine."""
        recalled = await self.engine.recall(subject_of(user), question, limit, max_tokens=max_tokens)
        return [one.turn.event_id for one in recalled.ranked]


def subject_of(user: str) -> Subject:
    """A subject that follows from the user."""
    return Subject(hashlib.md5(user.encode(), usedforsecurity=False).hexdigest(), "bench", user, 1)
