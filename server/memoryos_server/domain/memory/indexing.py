"""Open entries brought to the searchable side: turns indexed, changes applied.

Everything here may be repeated: a turn that is there stays as it is, a record is replaced only by one that is not older,
removing what is gone does nothing. What this process wrote is remembered with the incarnation of the engine that took it,
so that it is written once in ordinary times and again after a restart of the engine.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import BackendDown, Exists
from memoryos_server.domain.memory.displaced import displaced, under
from memoryos_server.domain.memory.progress import Locks
from memoryos_server.domain.ports import (
    Change,
    Entry,
    HeatStore,
    IndexedRecord,
    IndexedTurn,
    Record,
    Subject,
    Turn,
    Vectors,
)
from memoryos_server.domain.ports.consents import EVERYBODY, Consents

_Value = TypeVar("_Value")

_REMEMBERED = 100_000
_MEANING_BATCH = 64
_WORDS_BATCH = 256

Words = Callable[[str], Mapping[str, float]]
"""The terms of a text with their weights."""


class Indexer(Protocol):
    """Makes turns and texts searchable: their terms and vectors."""

    async def index(self, turns: Sequence[Turn]) -> list[IndexedTurn]:
        """The turns with what search needs, in order."""

    async def terms_and_vectors(
        self, texts: Sequence[str]
    ) -> Sequence[tuple[Mapping[str, float], Mapping[str, Sequence[float]]]]:
        """For each text its terms and vectors, in order."""


class Indexing:
    """Writes entries to the searchable side.

    Args:
        vectors: The searchable side.
        indexer: Makes terms and vectors.
        words: Makes terms alone.
        heat: Where heat is kept.
        locks: Who holds which subject.
        consents: Who may be remembered.
    """

    def __init__(
        self,
        vectors: Vectors,
        indexer: Indexer,
        words: Words,
        heat: HeatStore,
        locks: Locks,
        consents: Consents = EVERYBODY,
    ) -> None:
        self._vectors = vectors
        self._indexer = indexer
        self._words = words
        self._heat = heat
        self._locks = locks
        self._consents = consents
        self._withheld: OrderedDict[str, None] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._written: OrderedDict[str, int] = OrderedDict()
        self._wordy: set[str] = set()
        self._moved: OrderedDict[str, Mapping[str, str]] = OrderedDict()
        self._removed: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._busy: dict[str, asyncio.Event] = {}

    def know(self, entry_id: str) -> None:
        """Notes an entry as accepted, or as counted, by this process."""
        _note(self._known, entry_id, None)

    def knows(self, entry_id: str) -> bool:
        """Whether an entry was accepted or counted by this process."""
        return entry_id in self._known

    def is_removed(self, entry: Entry) -> bool:
        """Whether a change that came after an entry removes its turn: the entry must not bring it back."""
        removed = self._removed.get(entry.turn.id) if entry.turn else None
        return removed is not None and _place(entry.id) < removed

    def is_withheld(self, entry: Entry) -> bool:
        """Whether an entry's turn was found to be of somebody who may not be remembered any more."""
        return entry.id in self._withheld

    def removes(self, entry_id: str, change: Change) -> None:
        """Notes what an accepted change removes. The same event, accepted again after it, is another matter."""
        place = _place(entry_id)
        for memory_id in change.remove:
            _note(self._removed, memory_id, max(place, self._removed.get(memory_id, place)))

    def written(self, entry_id: str) -> int | None:
        """The incarnation that took an entry's writes, or None if they are to be done."""
        return None if entry_id in self._wordy else self._written.get(entry_id)

    def is_unwritten(self, entry_id: str) -> bool:
        """Whether nothing of an entry is written, neither words nor meaning."""
        return entry_id not in self._written

    def forget(self, entry_id: str) -> None:
        """Has an entry written again if it is still open."""
        self._written.pop(entry_id, None)
        self._wordy.discard(entry_id)
        self._moved.pop(entry_id, None)
        self._withheld.pop(entry_id, None)

    def forget_all(self) -> None:
        """Has every open entry written again: the engine may have lost them."""
        self._written.clear()
        self._wordy.clear()

    async def inline(self, entries: Sequence[Entry]) -> None:
        """Writes turns that this process has just accepted, while the worker waits with them.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        done = asyncio.Event()
        for entry in entries:
            self._busy[entry.id] = done
        try:
            await self._index([(entry, entry.turn) for entry in entries if entry.turn])
        finally:
            done.set()
            for entry in entries:
                self._busy.pop(entry.id, None)

    async def ensure(self, entries: Sequence[Entry], *, quickly: bool = False) -> None:
        """Writes what is not written yet: the turns together, changes after them in their order.

        Args:
            entries: Open entries, in order.
            quickly: Leaves the meaning of changes that asked for words only to a later call.

        Raises:
            BackendDown: The searchable side does not answer.
            Exception: An entry cannot be written; some others may be.
        """
        for event in {id(e): e for e in map(self._busy.get, [entry.id for entry in entries]) if e}.values():
            await event.wait()
        for entry in entries:
            if entry.change:
                self.removes(entry.id, entry.change)
        await self._ask(entries)
        missing = [e for e in entries if self.written(e.id) is None]
        left_out = {e.id for e in missing if e.turn and (self.is_removed(e) or self.is_withheld(e))}
        await self._index([(e, e.turn) for e in missing if e.turn and e.id not in left_out])
        for entry in missing:
            if entry.id in left_out:
                _note(self._written, entry.id, await self.incarnation(entry.subject))
            if entry.change:
                async with self._locks.change(entry.subject.id):
                    if entry.id not in self._written:
                        await self.apply(entry, entry.change)
                if entry.id in self._wordy and not quickly:
                    await self._add_meaning(entry, entry.change)

    async def _ask(self, entries: Sequence[Entry]) -> None:
        """Finds out whose turns may not be remembered any more.

        Raises:
            BackendDown: That cannot be found out.
        """
        allowed: dict[Subject, bool] = {}
        for entry in entries:
            if entry.turn is None:
                continue
            if entry.subject not in allowed:
                allowed[entry.subject] = await self._consents.allows(entry.subject)
            if allowed[entry.subject]:
                self._withheld.pop(entry.id, None)
            else:
                _note(self._withheld, entry.id, None)

    async def apply(self, entry: Entry, change: Change) -> None:
        """Applies a change; whoever calls holds the subject's lock. Without `embed` its meaning waits for the worker.

        Raises:
            BackendDown: The searchable side does not answer.
            Exists: An id is in use for something else, of what cannot be kept under another.
        """
        self.removes(entry.id, change)
        took = set()
        moved: Mapping[str, str] = {}
        if put := await self._standing(entry, change.put):
            try:
                took.add(await self._put(entry.subject, put, whole=change.embed))
            except Exists:
                moved = await displaced(self._vectors, entry.subject, put)
                if not moved:
                    raise
                _note(self._moved, entry.id, moved)
                # Under its other id there may be something newer than what comes late.
                put = await self._standing(entry, [under(moved, record) for record in put])
                took.add(await self._put(entry.subject, put, whole=change.embed))
        if change.heat:
            await self._heat.put(entry.subject, {moved.get(name, name): it for name, it in change.heat.items()})
        if change.remove:
            took.add(await self._vectors.remove(entry.subject, change.remove))
        if not took:
            took.add(await self.incarnation(entry.subject))
        if len(took) > 1:
            raise BackendDown("The searchable side was restarted midway")
        _note(self._written, entry.id, took.pop())
        if change.put and not change.embed:
            self._wordy.add(entry.id)
        reach("change.applied")

    async def _put(self, subject: Subject, put: Sequence[Record], *, whole: bool) -> int:
        return await self._vectors.put(subject, await (self._whole(put) if whole else self._in_words(put)))

    async def _index(self, turns: Sequence[tuple[Entry, Turn]]) -> None:
        if not turns:
            return
        indexed = await self._indexer.index([turn for _, turn in turns])
        reach("index.embedded")
        by_subject: dict[str, list[int]] = {}
        for at, (entry, _) in enumerate(turns):
            by_subject.setdefault(entry.subject.id, []).append(at)
        for places in by_subject.values():
            subject = turns[places[0]][0].subject
            incarnation = await self._vectors.insert(subject, [indexed[at] for at in places])
            for at in places:
                _note(self._written, turns[at][0].id, incarnation)
            # Taken back while it was being written, by a change that found it there from an earlier time.
            if gone := [turns[at][1].id for at in places if self.is_removed(turns[at][0])]:
                await self._vectors.remove(subject, gone)
        reach("index.inserted")

    async def _add_meaning(self, entry: Entry, change: Change) -> None:
        took = {self._written[entry.id]}
        moved = self._moved.get(entry.id, {})
        for start in range(0, len(change.put), _MEANING_BATCH):
            some = [under(moved, record) for record in change.put[start : start + _MEANING_BATCH]]
            records = await self._whole(some)
            async with self._locks.change(entry.subject.id):
                # What was changed or removed meanwhile must not come back.
                there = await self._vectors.records(entry.subject, [r.record.id for r in records])
                versions = {record.id: _version(record) for record in there}
                still = [r for r in records if versions.get(r.record.id) == _version(r.record)]
                if still:
                    took.add(await self._vectors.put(entry.subject, still))
        if len(took) > 1:
            raise BackendDown("The searchable side was restarted midway")
        self._wordy.discard(entry.id)

    async def _standing(self, entry: Entry, put: Sequence[Record]) -> Sequence[Record]:
        """What an entry is to put: of one that was given back, no version that another has taken the place of since."""
        if not entry.returned or not put:
            return put
        there = {one.id: one for one in await self._vectors.records(entry.subject, [one.id for one in put])}
        return [one for one in put if (other := there.get(one.id)) is None or not _replaced(one, other)]

    async def _whole(self, records: Sequence[Record]) -> list[IndexedRecord]:
        made = await self._indexer.terms_and_vectors([record.text for record in records])
        return [IndexedRecord(record, *parts) for record, parts in zip(records, made, strict=True)]

    async def _in_words(self, records: Sequence[Record]) -> list[IndexedRecord]:
        def piece(start: int) -> list[IndexedRecord]:
            return [IndexedRecord(r, self._words(r.text), {}) for r in records[start : start + _WORDS_BATCH]]

        made: list[IndexedRecord] = []
        for start in range(0, len(records), _WORDS_BATCH):
            made += await asyncio.to_thread(piece, start)
        return made

    async def incarnation(self, subject: Subject) -> int:
        """The engine's present incarnation.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        return await self._vectors.insert(subject, [])


def _place(entry_id: str) -> tuple[int, int]:
    """Where an entry stands among those of its partition."""
    millis, _, number = entry_id.partition("/")[2].partition("-")
    return int(millis), int(number)


def _version(record: Record) -> tuple[int, datetime]:
    """What tells two versions of a record apart, also two that were made of the same one."""
    return record.version, record.updated_at


def _replaced(record: Record, there: Record) -> bool:
    """Whether what is there took the place of a version, or of the one that it was made of."""
    return there.version >= record.version and _version(there) != _version(record)


def _note(kept: OrderedDict[str, _Value], key: str, value: _Value) -> None:
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > _REMEMBERED:
        kept.popitem(last=False)
