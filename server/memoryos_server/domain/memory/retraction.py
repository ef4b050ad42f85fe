"""What taking turns back does to what was derived from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.memory.fencing import still_ours
from memoryos_server.domain.ports import IndexedRecord, Record, RecordFilter, Subject, Turn, Vectors

_SOURCES_AT_ONCE = 100


class Rebuild(Protocol):
    """Makes segments anew."""

    async def rebuild(self, subject: Subject, record: Record, turns: Sequence[Turn]) -> Record:
        """The segment made of these turns only, oldest first. Writes nothing."""


class Facts(Protocol):
    """What is believed."""

    async def without(self, subject: Subject, memory_ids: Collection[str]) -> tuple[list[Record], list[str]]:
        """Facts to put, and ids of facts to remove, if those turns are taken back."""


class Indexing(Protocol):
    """What search needs of texts; the recall engine gives it."""

    async def terms_and_vectors(
        self, texts: Sequence[str]
    ) -> list[tuple[dict[str, float], Mapping[str, Sequence[float]]]]:
        """For each text, its terms and vectors."""


class Retraction:
    """Takes turns out of segments and facts.

    Args:
        vectors: The searchable side.
        facts: What is believed.
        rebuild: Makes segments anew; None: a segment that lost a source is removed.
    """

    def __init__(self, vectors: Vectors, facts: Facts, rebuild: Rebuild | None) -> None:
        self._vectors = vectors
        self._facts = facts
        self._rebuild = rebuild

    async def derived(self, subject: Subject, gone: Collection[str]) -> tuple[list[Record], list[str]]:
        """Records to put, and ids of records to remove, so that nothing follows from those turns. Writes nothing.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        put: list[Record] = []
        remove: list[str] = []
        for record in await self._segments(subject, sorted(gone)):
            left = tuple(source for source in record.sources if source not in gone)
            kept = await self._from(subject, record, left) if left else None
            if kept is None:
                remove.append(record.id)
            else:
                put.append(kept)
        # A belief that only such a turn had ended is held again: facts know the turns they follow from.
        believed, forgotten = await self._facts.without(subject, gone)
        return [*put, *believed], [*remove, *forgotten]

    async def _from(self, subject: Subject, record: Record, left: tuple[str, ...]) -> Record | None:
        """The segment with these sources only, or None if it cannot stand on them."""
        turns = await self._vectors.get(subject, left)
        if self._rebuild is None or not turns:
            return None
        made = await self._rebuild.rebuild(subject, record, turns)
        return replace(made, version=record.version + 1, updated_at=utc_now(), history=())

    async def _segments(self, subject: Subject, ids: Sequence[str]) -> list[Record]:
        found: dict[str, Record] = {}
        for start in range(0, len(ids), _SOURCES_AT_ONCE):
            chosen = RecordFilter("segment", sources=tuple(ids[start : start + _SOURCES_AT_ONCE]))
            async for record in self._vectors.scan(subject, chosen):
                found[record.id] = record
        return list(found.values())


class Sweeper:
    """Takes out of derived memory what was made of turns while another process took them back.

    Within a process locks keep deletion and derivation apart; between processes this does: whoever has the partition, and so
    alone derives, runs it once the turns are gone.

    Args:
        vectors: The searchable side.
        retraction: What is to be done.
        indexing: Terms and vectors.
    """

    def __init__(self, vectors: Vectors, retraction: Retraction, indexing: Indexing) -> None:
        self._vectors = vectors
        self._retraction = retraction
        self._indexing = indexing

    async def sweep(self, subject: Subject, gone: Collection[str]) -> None:
        """Writes what is left of segments and facts that name turns that are gone; mostly that is nothing to do.

        Raises:
            BackendDown: The searchable side does not answer.
            Stale: Somebody else has the partition now.
        """
        put, remove = await self._retraction.derived(subject, gone)
        if put:
            made = await self._indexing.terms_and_vectors([record.text for record in put])
            await still_ours()
            await self._vectors.put(subject, [IndexedRecord(r, *parts) for r, parts in zip(put, made, strict=True)])
        if remove:
            await still_ours()
            await self._vectors.remove(subject, remove)
