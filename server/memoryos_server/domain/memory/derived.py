"""What mid-term and long-term memory say to a question: segments, profile and knowledge."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from memoryos_server.domain.core.text import estimate_tokens
from memoryos_server.domain.memory import facts, segments
from memoryos_server.domain.memory.knowledge import Belief, Knowledge, belief
from memoryos_server.domain.memory.profile import profile
from memoryos_server.domain.ports import Record, RecordHit, RecordQuery, Subject, Vectors

MOST_SEGMENTS = 5
MOST_KNOWLEDGE = 20

RELEVANT = 0.3
"""The closeness from which a segment counts as relevant."""

MEANT = 0.35
"""The cosine from which a fact goes before those that a question does not mean."""

ITEM_TOKENS = 6
"""What an item costs in a budget besides its text."""

_HITS = 6  # per leg
_LEXICAL = "lexical"


class Closeness(Protocol):
    """How search goes by meaning and words; the recall engine gives it."""

    async def query(self, text: str) -> tuple[dict[str, float], Mapping[str, Sequence[float]]]:
        """Terms and vectors of a question."""

    def closeness(self, query: str, text: str, scores: Mapping[str, float]) -> float:
        """How close a record's text is to a question, 0..1."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A segment that has to do with a question.

    Attributes:
        id: The segment's id.
        summary: Its text.
        tags: Its labels.
        score: The relevance, 0..1.
    """

    id: str
    summary: str
    tags: tuple[str, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Derived:
    """What is derived from episodes.

    Attributes:
        topics: Best first.
        profile: A short text, "" if nothing is known.
        knowledge: What has to do with the question first, then what is surest.
        outdated: Turns that say what is no longer believed -> the turns that say what came instead.
    """

    topics: tuple[Topic, ...] = ()
    profile: str = ""
    knowledge: tuple[Belief, ...] = ()
    outdated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """The memories it is made of, but for the profile: what counts as used when it is returned."""
        return [topic.id for topic in self.topics] + [one.id for one in self.knowledge]


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a memory."""

    version: int
    content: str
    changed_at: datetime


class DerivedRecall:
    """Finds what is derived.

    Args:
        vectors: The searchable side.
        engine: Words and meaning.
        knowledge: The facts.
    """

    def __init__(self, vectors: Vectors, engine: Closeness, knowledge: Knowledge) -> None:
        self._vectors = vectors
        self._engine = engine
        self._knowledge = knowledge

    async def recall(self, subject: Subject, query: str, *, as_of: datetime | None = None) -> Derived:
        """What mid-term and long-term memory say to a question.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        (terms, dense), known = await asyncio.gather(self._engine.query(query), self._knowledge.current(subject, as_of))
        queries = [RecordQuery(segments.KIND, terms, dense, _HITS, as_of=as_of, most=MOST_SEGMENTS)]
        # Few facts are all given, and their words tell which come first; of many, search finds those that are meant.
        if dense and len(known) > MOST_KNOWLEDGE:
            queries.append(RecordQuery(facts.KIND, {}, dense, _HITS, as_of=as_of))
        finding = asyncio.create_task(self._vectors.find(subject, queries))
        try:
            await asyncio.sleep(0)  # the question goes out, and what is known is gone through meanwhile
            relevant, about = _sharing(known, terms), profile(known)
            found, *more = await finding
        finally:
            finding.cancel()  # of no effect where all went well
        for hits in more:
            meant = [hit for hit in hits if _cosine(hit) >= MEANT]
            relevant += [belief(hit.record) for hit in sorted(meant, key=_cosine, reverse=True)]
        knowledge = {one.id: one for one in (*relevant, *known)}
        return Derived(
            self._topics(query, found),
            about,
            tuple(itertools.islice(knowledge.values(), MOST_KNOWLEDGE)),
            await self._knowledge.outdated(subject, terms, as_of),
        )

    async def history(self, subject: Subject, memory_id: str) -> list[Version] | None:
        """The versions of a record, newest first; None if the subject has no such record.

        A fact's are those of its matter: what was believed before it, it, and what came after.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        found = await self._vectors.records(subject, [memory_id], history=True)
        if not found:
            return None
        record = found[0]
        if record.kind == facts.KIND:
            return _told(await self._knowledge.chain(subject, record))
        return [Version(record.version, record.text, record.updated_at), *(_version(item) for item in record.history)]

    def _topics(self, query: str, hits: Sequence[RecordHit]) -> tuple[Topic, ...]:
        topics = [
            Topic(
                hit.record.id,
                hit.record.text,
                hit.record.tags,
                self._engine.closeness(query, hit.record.text, hit.scores),
            )
            for hit in hits
        ]
        topics.sort(key=lambda topic: (-topic.score, topic.id))
        return tuple(topic for topic in topics if topic.score >= RELEVANT)


def _sharing(known: Sequence[Belief], terms: Mapping[str, float]) -> list[Belief]:
    """The facts that have words of a question, those with the weightiest first."""
    asked = terms.keys()
    shared = [(sum(terms[term] for term in asked & one.terms), one) for one in known if not asked.isdisjoint(one.terms)]
    return [one for _, one in sorted(shared, key=lambda pair: -pair[0])]


def _cosine(hit: RecordHit) -> float:
    return max((score for leg, score in hit.scores.items() if leg != _LEXICAL), default=0.0)


def _version(item: Mapping[str, Any]) -> Version:
    """An older version, as segments and typed memories keep theirs."""
    changed_at = item.get("changed_at") or item["updated_at"]
    if isinstance(changed_at, str):
        changed_at = datetime.fromisoformat(changed_at)
    return Version(item["version"], item["content"] if "content" in item else item["summary"], changed_at)


def _told(chain: Sequence[Record]) -> list[Version]:
    """What a chain of facts tells, newest first: when what was believed, and when it ended without a successor."""
    told: list[tuple[datetime, str]] = []
    for record in chain:
        told.append((record.since, belief(record).text))
        seen = facts.seen_in(record)
        if record.until is not None and seen[-1].ended and record.until != record.since:
            told.append((record.until, seen[-1].sentence))
    told.sort(key=lambda t: t[0])
    return [Version(n, text, at) for n, (at, text) in reversed(list(enumerate(told, 1)))]


def packed(derived: Derived, budget: int) -> Derived:
    """What of it fits into a budget of estimated tokens, whole: the profile, then knowledge, then topics, best first."""

    def fits(text: str) -> bool:
        nonlocal budget
        cost = estimate_tokens(text) + ITEM_TOKENS
        if cost > budget:
            return False
        budget -= cost
        return True

    return replace(
        derived,
        profile=derived.profile if derived.profile and fits(derived.profile) else "",
        knowledge=tuple(one for one in derived.knowledge if fits(one.text)),
        topics=tuple(one for one in derived.topics if fits(one.summary)),
    )
