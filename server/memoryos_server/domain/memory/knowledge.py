"""Long-term memory on the searchable side: facts are learnt, looked up, traced and taken back here."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.memory.counts import Counts, Uncounted
from memoryos_server.domain.memory.extraction.model import SPEAKER
from memoryos_server.domain.memory.facts import DENIAL, KIND, Sighting, Slots, denial_id, seen_in
from memoryos_server.domain.memory.fencing import still_ours
from memoryos_server.domain.ports import IndexedRecord, Record, RecordFilter, Subject, Vectors

MOST_CURRENT = 400
"""How many current facts of a subject are looked through for its profile and knowledge, newest first."""

KEPT_SECONDS = 600.0
"""How long what is believed is kept where nobody else writes; every write drops it."""

SHARED_SECONDS = 2.0
"""The same where other processes write, too."""

CACHE_SUBJECTS = 256

_Key = tuple[str, str, str, int]

_BELIEFS_KEPT = 4 * MOST_CURRENT  # with their terms, which take longest to make; each as long as its record is the same

_SOURCES_AT_ONCE = 100
_SLOT_RECORDS = 500  # of one matter; older ones are history that nothing said now can touch


class Indexing(Protocol):
    """What search needs of texts; the recall engine gives it."""

    async def terms_and_vectors(
        self, texts: Sequence[str]
    ) -> list[tuple[dict[str, float], Mapping[str, Sequence[float]]]]:
        """For each text, its terms and vectors."""


@dataclass(frozen=True, slots=True)
class Belief:
    """A fact as it is answered with.

    Attributes:
        id: The fact's id.
        text: A sentence, with its subject where that is not the user.
        who: `user`, or a name.
        predicate: What it is about.
        value: The value as it was spelled.
        sentence: The fact without its subject.
        group: `profile` or `knowledge`.
        confidence: 0..1.
        since: From when it was believed.
        until: From when no longer, or None.
        valid_from: From when it held, or None if nobody said.
        valid_to: Until when, or None.
        sources: The turns that say so.
        terms: The terms of `text`.
    """

    id: str
    text: str
    who: str
    predicate: str
    value: str
    sentence: str
    group: str
    confidence: float
    since: datetime
    until: datetime | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    sources: tuple[str, ...] = field(default=(), repr=False)
    terms: frozenset[str] = field(default=frozenset(), repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of somebody.

    Attributes:
        beliefs: What is believed.
        outdated: Turns that state what is no longer believed -> the turns that say what came instead.
        mixed: Those of them that state what is still believed, too -> the terms of what is over, and of what is not.
    """

    beliefs: list[Belief]
    outdated: Mapping[str, tuple[str, ...]]
    mixed: Mapping[str, tuple[Set[str], Set[str]]]

    def outdated_for(self, asked: Mapping[str, float]) -> Mapping[str, tuple[str, ...]]:
        """The outdated turns, of the mixed ones those that a question asks for what is over."""

        def weight(terms: Set[str]) -> float:
            return sum(asked[term] for term in asked.keys() & terms)

        still = {turn for turn, (over, stands) in self.mixed.items() if weight(over) <= weight(stands)}
        return (
            {turn: instead for turn, instead in self.outdated.items() if turn not in still} if still else self.outdated
        )


def belief(record: Record) -> Belief:
    """A fact out of its record."""
    data = record.data
    who, sentence = data["who"], data["sentence"]
    return Belief(
        id=record.id,
        text=sentence if who == SPEAKER or who.casefold() in sentence.casefold() else f"{who}: {sentence}",
        who=who,
        predicate=data["predicate"],
        value=data["value"],
        sentence=sentence,
        group=data["group"],
        confidence=data["confidence"],
        since=record.since,
        until=record.until,
        valid_from=_moment(data["valid_from"]),
        valid_to=_moment(data["valid_to"]),
        sources=record.sources,
    )


class Knowledge:
    """The facts of subjects.

    Args:
        vectors: The searchable side.
        indexing: Terms and vectors.
        fold: A text in one form for comparing.
        terms: The terms of a text and their weights.
        counts: Is told what was written.
        learnt: Is told whose facts changed, for the other processes that keep them for a moment.
        kept_seconds: How long what is believed is kept: `KEPT_SECONDS` or `SHARED_SECONDS`.
    """

    def __init__(
        self,
        vectors: Vectors,
        indexing: Indexing,
        fold: Callable[[str], str],
        terms: Callable[[str], Mapping[str, float]],
        counts: Counts | None = None,
        learnt: Callable[[Subject], None] = lambda _: None,
        *,
        kept_seconds: float = KEPT_SECONDS,
    ) -> None:
        self._learnt = learnt
        self._kept_seconds = kept_seconds
        self._counts = counts or Uncounted()
        self._vectors = vectors
        self._indexing = indexing
        self._slots = Slots(fold)
        self._terms = terms
        self._reading: dict[_Key, object] = {}
        self._made: OrderedDict[str, tuple[Record, Belief]] = OrderedDict()
        self._current: OrderedDict[_Key, tuple[float, _Known]] = OrderedDict()

    async def learn(self, subject: Subject, seen: Iterable[Sighting]) -> None:
        """Adds what was sighted to what is believed; what is known already changes nothing.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        slots: dict[str, list[Sighting]] = {}
        for one in seen:
            slots.setdefault(self._slots.of(one), []).append(one)
        put: list[Record] = []
        gone: list[str] = []
        for slot, fresh in slots.items():
            stored = await self._slot(subject, slot, denials=True)
            known = [one for record in stored for one in seen_in(record)]
            changed, left = self._settled(subject, slot, [*known, *fresh], stored)
            put += changed
            gone += left
        if put:
            indexed = await self._indexing.terms_and_vectors([record.text for record in put])
            await still_ours()
            await self._vectors.put(
                subject,
                [IndexedRecord(record, terms, dense) for record, (terms, dense) in zip(put, indexed, strict=True)],
            )
            self._counts.wrote(KIND, sum(record.kind == KIND for record in put))
        if gone:
            await still_ours()
            await self._vectors.remove(subject, gone)
        if put or gone:
            self.forget(subject)
            self._learnt(subject)

    async def without(self, subject: Subject, memory_ids: Collection[str]) -> tuple[list[Record], list[str]]:
        """What taking turns back does to facts: records to put, and ids to remove. Writes nothing.

        A fact that no other turn states goes; one that only such a turn had contradicted is believed again.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        gone_sources = set(memory_ids)
        stated = [*await self._of(subject, gone_sources), *await self._of(subject, gone_sources, DENIAL)]
        slots = dict.fromkeys(slot for record in stated for slot in record.tags)
        put: list[Record] = []
        gone: list[str] = []
        for slot in slots:
            stored = await self._slot(subject, slot, denials=True)
            seen = [one for record in stored for one in seen_in(record) if one.source not in gone_sources]
            changed, left = self._settled(subject, slot, seen, stored)
            put += changed
            gone += left
        return put, gone

    async def contradicted(self, subject: Subject, memory_ids: Collection[str]) -> set[tuple[str, int]]:
        """Turn and place of what those turns state and nobody believes any more.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        wanted = set(memory_ids)
        return {
            (one.source, one.index)
            for record in await self._of(subject, wanted)
            if record.until is not None
            for one in seen_in(record)
            if one.source in wanted and not one.ended
        }

    async def outdated_by(self, subject: Subject, memory_ids: Collection[str]) -> dict[str, datetime]:
        """Other turns that state what those turns contradict, and since when it is not believed any more.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        wanted = set(memory_ids)
        new = await self._of(subject, wanted)
        said = {(slot, one.at) for r in new for slot in r.tags for one in seen_in(r) if one.source in wanted}
        outdated: dict[str, datetime] = {}
        for slot in {slot for slot, _ in said}:
            for record in await self._slot(subject, slot):
                if record.until is not None and (slot, record.until) in said:
                    outdated.update({s: record.until for s in record.sources if s not in wanted})
        return outdated

    async def chain(self, subject: Subject, record: Record) -> list[Record]:
        """Every fact of the matter that a fact is about, oldest first, whether it is still believed or not.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        found = [r for slot in record.tags[:1] for r in await self._slot(subject, slot)]
        return sorted(found, key=lambda r: (r.since, r.until is None, r.until or r.since, r.id))

    async def current(self, subject: Subject, as_of: datetime | None = None) -> list[Belief]:
        """What is believed now, or was at a time; most sure first, of equals the newer.

        Kept for a moment; `forget` drops it. What another process learns is seen when that says so, at the latest when
        the moment is over.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        return (await self._known(subject, as_of)).beliefs

    async def outdated(
        self, subject: Subject, asked: Mapping[str, float], as_of: datetime | None = None
    ) -> Mapping[str, tuple[str, ...]]:
        """Turns whose every statement of a matter is no longer believed -> the turns that say what came instead.

        A turn that says something else, too, which still holds, is among them only for a question about what does not.
        As `current`; of somebody with more facts than are kept, none.

        Args:
            subject: Whose.
            asked: The terms of the question and their weights.
            as_of: When; None for now.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        return (await self._known(subject, as_of)).outdated_for(asked)

    async def _known(self, subject: Subject, as_of: datetime | None) -> _Known:
        if as_of is not None:
            facts = self._vectors.scan(subject, RecordFilter(KIND))
            return self._split([record async for record in facts if record.since <= as_of], as_of)
        key, now = _key(subject), time.monotonic()
        kept = self._current.get(key)
        if kept is not None and now < kept[0]:
            self._current.move_to_end(key)
            return kept[1]
        reading = self._reading[key] = object()
        try:
            records, total = await self._vectors.page(subject, RecordFilter(KIND), 0, MOST_CURRENT)
            if total > len(records):
                records, _ = await self._vectors.page(subject, RecordFilter(KIND, current=True), 0, MOST_CURRENT)
            known = self._split(records)
            if self._reading.get(key) is reading:  # nothing was written meanwhile
                self._current[key] = (now + self._kept_seconds, known)
                while len(self._current) > CACHE_SUBJECTS:
                    self._current.popitem(last=False)
            return known
        finally:
            if self._reading.get(key) is reading:
                del self._reading[key]

    def _split(self, records: Sequence[Record], as_of: datetime | None = None) -> _Known:
        def over(record: Record) -> bool:
            return record.until is not None and (as_of is None or record.until <= as_of)

        believed = [record for record in records if not over(record)]
        states = {(source, slot) for record in believed for source in record.sources for slot in record.tags}
        now: dict[str, list[str]] = {}
        for record in believed:
            for slot in record.tags:
                now.setdefault(slot, []).extend(record.sources)
        outdated: dict[str, tuple[str, ...]] = {}
        for record in records:
            for slot in record.tags if over(record) else ():
                if instead := now.get(slot):
                    outdated.update({one: tuple(instead) for one in record.sources if (one, slot) not in states})
        beliefs = _ranked([self._belief(record) for record in believed])
        stands: dict[str, set[str]] = {}
        for one in beliefs:
            for source in one.sources:
                if source in outdated:
                    stands.setdefault(source, set()).update(one.terms)
        gone: dict[str, set[str]] = {}
        for record in records:
            for source in (stands.keys() & record.sources) if over(record) else ():
                gone.setdefault(source, set()).update(self._belief(record).terms)
        mixed = {source: (gone.get(source, set()), terms) for source, terms in stands.items()}
        return _Known(beliefs, outdated, mixed)

    def forget(self, subject: Subject) -> None:
        """Drops what is kept of a subject, because it changed."""
        key = _key(subject)
        self._current.pop(key, None)
        self._reading.pop(key, None)

    def forget_id(self, subject_id: str) -> None:
        """As `forget`, for the subject of an id."""
        for key in [key for key in {*self._current, *self._reading} if key[2] == subject_id]:
            self._current.pop(key, None)
            self._reading.pop(key, None)

    def forget_all(self) -> None:
        """As `forget`, for everybody; nothing of anybody is left here."""
        self._current.clear()
        self._reading.clear()
        self._made.clear()

    def forget_user(self, tenant_id: str, user_id: str) -> None:
        """As `forget`, for whoever that is."""
        for key in [key for key in {*self._current, *self._reading} if key[:2] == (tenant_id, user_id)]:
            self._current.pop(key, None)
            self._reading.pop(key, None)

    def _belief(self, record: Record) -> Belief:
        made = self._made.get(record.id)
        if made is None or made[0] != record:
            plain = belief(record)
            made = record, replace(plain, terms=frozenset(self._terms(plain.text)))
            self._made[record.id] = made
            while len(self._made) > _BELIEFS_KEPT:
                self._made.popitem(last=False)
        return made[1]

    async def _of(self, subject: Subject, memory_ids: Collection[str], kind: str = KIND) -> list[Record]:
        """The facts that turns state."""
        ids = sorted(memory_ids)
        pieces = [tuple(ids[at : at + _SOURCES_AT_ONCE]) for at in range(0, len(ids), _SOURCES_AT_ONCE)]
        found = [r for some in pieces async for r in self._vectors.scan(subject, RecordFilter(kind, sources=some))]
        return list({record.id: record for record in found}.values())

    async def _slot(self, subject: Subject, slot: str, *, denials: bool = False) -> list[Record]:
        found, _ = await self._vectors.page(subject, RecordFilter(KIND, tags=(slot,)), 0, _SLOT_RECORDS)
        return [*found, *await self._vectors.records(subject, [denial_id(subject, slot)])] if denials else found

    def _settled(
        self, subject: Subject, slot: str, seen: Iterable[Sighting], stored: Sequence[Record]
    ) -> tuple[list[Record], list[str]]:
        made = self._slots.records(subject, slot, seen, stored)
        before = {record.id: record for record in stored}
        ids = {record.id for record in made}
        return [r for r in made if r is not before.get(r.id)], [r.id for r in stored if r.id not in ids]


def _key(subject: Subject) -> _Key:
    return subject.tenant_id, subject.user_id, subject.id, subject.epoch


def _ranked(beliefs: list[Belief]) -> list[Belief]:
    return sorted(beliefs, key=lambda b: (-b.confidence, -b.since.timestamp(), b.id))


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
