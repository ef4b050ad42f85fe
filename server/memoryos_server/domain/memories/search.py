"""Finds typed memories by meaning and by words, and says how close they are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from memoryos_server.domain.memories.model import KIND, Found, memory_of
from memoryos_server.domain.ports import RecordHit, RecordQuery, Subject, Vectors

CANDIDATES = 30
"""How many memories each leg finds at least."""

SPARE = 10
"""How many more memories than asked for are read closely; they are those that stand best in the legs' own scores."""

LEXICAL = "lexical"

END_CHARS = 1000
"""Of a long question, this much of its beginning and of its end is compared with each memory."""

_AT_ONCE_CHARS = 20_000
"""The text up to which comparing is done at once: some 10 ms."""


class Engine(Protocol):
    """Words and meaning, as far as this room knows them."""

    async def query(self, text: str) -> tuple[dict[str, float], Mapping[str, Sequence[float]]]:
        """A question's terms and vectors."""

    async def terms_and_vectors(
        self, texts: Sequence[str]
    ) -> list[tuple[dict[str, float], Mapping[str, Sequence[float]]]]:
        """For each text, in order, its terms and vectors."""

    def closeness(self, query: str, text: str, scores: Mapping[str, float]) -> float:
        """How close a text is to a question, 0..1."""


class Finder:
    """Finds memories.

    Args:
        vectors: The searchable side.
        engine: Words and meaning.
    """

    def __init__(self, vectors: Vectors, engine: Engine) -> None:
        """Keeps its collaborators."""
        self._vectors = vectors
        self._engine = engine

    async def needs(self, texts: Sequence[str]) -> list[tuple[dict[str, float], Mapping[str, Sequence[float]]]]:
        """For each text, in order, what a search for the same needs."""
        return await self._engine.terms_and_vectors(texts)

    async def find(
        self,
        subject: Subject,
        query: str,
        most: int,
        *,
        types: Sequence[str | None] = (None,),
        min_similarity: float = 0.0,
    ) -> list[Found]:
        """The memories that have to do with a question, best first.

        Args:
            subject: Whose.
            query: The question.
            most: The most memories.
            types: The types to search, each by itself; None: all.
            min_similarity: Leaves out memories scored below it.
        """
        terms, dense = await self._engine.query(query)
        limit = max(2 * most, CANDIDATES)
        found = await self._vectors.find(subject, [RecordQuery(KIND, terms, dense, limit, type=t) for t in types])
        hits = _likely([hit for some in found for hit in some], most + SPARE)
        brief = query if len(query) <= 2 * END_CHARS else f"{query[:END_CHARS]}\n{query[-END_CHARS:]}"
        # A question is read once for each memory.
        chars = sum(len(brief) + len(hit.record.text) for hit in hits)
        if chars <= _AT_ONCE_CHARS:
            scored = self._score(brief, hits)
        else:
            scored = await asyncio.to_thread(self._score, brief, hits)
        best = sorted((one for one in scored if one.score > 0 and one.score >= min_similarity), key=_order)
        return best[:most]

    def _score(self, query: str, hits: Sequence[RecordHit]) -> list[Found]:
        return [
            Found(memory_of(hit.record), min(1.0, self._engine.closeness(query, hit.record.text, hit.scores)))
            for hit in hits
        ]


def _likely(hits: Sequence[RecordHit], most: int) -> list[RecordHit]:
    """The hits whose legs' scores, BM25 as a share of the best one's, sum up highest."""
    best = max((hit.scores.get(LEXICAL, 0.0) for hit in hits), default=0.0) or 1.0

    def total(hit: RecordHit) -> float:
        return sum(score / best if leg == LEXICAL else score for leg, score in hit.scores.items())

    return sorted(hits, key=total, reverse=True)[:most]


def _order(found: Found) -> tuple[float, float, str]:
    return -found.score, -found.memory.importance, found.memory.id
