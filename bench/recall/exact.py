"""An exact searchable side in memory, for fitting: BM25 with the subject's own IDF, and cosines, over every turn.

It answers as the stores do, only without approximation, sealing or durability; nothing but the benchmark uses it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from memoryos_server.domain.ports import Candidate, Candidates, IndexedTurn, SearchQuery, Subject, Turn


class _Corpus:
    """One subject's turns."""

    def __init__(self) -> None:
        self.turns: list[IndexedTurn] = []
        self.places: dict[str, int] = {}
        self.postings: dict[str, list[tuple[int, float]]] = {}
        self.arrays: dict[str, tuple[Any, Any]] = {}
        self.dense: dict[str, Any] = {}

    def add(self, turn: IndexedTurn) -> None:
        place = len(self.turns)
        self.turns.append(turn)
        self.places[turn.turn.id] = place
        for term, weight in turn.terms.items():
            self.postings.setdefault(term, []).append((place, weight))
        self.arrays.clear()
        self.dense.clear()

    def lexical(self, terms: Mapping[str, float]) -> Any:
        scores = np.zeros(len(self.turns))
        for term, weight in terms.items():
            if term not in self.postings:
                continue
            if term not in self.arrays:
                found = self.postings[term]
                self.arrays[term] = (np.array([p for p, _ in found]), np.array([w for _, w in found]))
            places, weights = self.arrays[term]
            n, df = len(self.turns), len(places)
            scores[places] += weight * math.log(1 + (n - df + 0.5) / (df + 0.5)) * weights
        return scores

    def cosines(self, name: str, vector: Sequence[float]) -> Any:
        if name not in self.dense:
            none = [0.0] * len(vector)
            self.dense[name] = np.array([turn.dense.get(name, none) for turn in self.turns], dtype=np.float32)
        return self.dense[name] @ np.array(vector, dtype=np.float32)


class ExactVectors:
    """What recall needs of `domain.ports.Vectors`."""

    def __init__(self) -> None:
        """Starts empty."""
        self._corpora: dict[str, _Corpus] = {}

    async def insert(self, subject: Subject, turns: Sequence[IndexedTurn]) -> int:
        """Adds turns that are not there; one without a place in the order gets the next."""
        corpus = self._corpora.setdefault(subject.id, _Corpus())
        for turn in turns:
            if turn.turn.id not in corpus.places:
                seq = turn.turn.seq or len(corpus.turns) + 1
                corpus.add(replace(turn, turn=replace(turn.turn, seq=seq)))
        return 1

    async def search(
        self, subject: Subject, query: SearchQuery, later: Awaitable[Mapping[str, Sequence[float]]] | None = None
    ) -> Candidates:
        """The best of each leg."""
        corpus = self._corpora.get(subject.id)
        vectors = dict(query.dense) | (dict(await later) if later is not None else {})
        if corpus is None:
            return Candidates.of(())
        legs = {name: corpus.lexical(terms) for name, terms in query.lexical.items()}
        legs |= {name: corpus.cosines(name, vector) for name, vector in vectors.items()}
        found: dict[int, dict[str, float]] = {}
        for name, scores in legs.items():
            if query.until is not None:
                late = [t.turn.timestamp > query.until for t in corpus.turns]
                scores = np.where(late, 0.0, scores)
            for place in np.argsort(-scores, kind="stable")[: query.limit]:
                if scores[place] > 0:
                    found.setdefault(int(place), {})[name] = float(scores[place])
        return Candidates.of(_candidate(corpus.turns[place], query, scores) for place, scores in found.items())

    async def get(self, subject: Subject, ids: Sequence[str]) -> list[Turn]:
        """Those that exist."""
        corpus = self._corpora.get(subject.id)
        return [corpus.turns[corpus.places[one]].turn for one in ids if one in corpus.places] if corpus else []


def _candidate(indexed: IndexedTurn, query: SearchQuery, scores: Mapping[str, float]) -> Candidate:
    turn = indexed.turn
    named = not query.names.isdisjoint(indexed.names)
    return Candidate(turn.id, turn.seq, turn.session_id, turn.timestamp.timestamp(), indexed.hints, named, dict(scores))
