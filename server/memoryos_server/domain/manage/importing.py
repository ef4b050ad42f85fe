"""What an import makes of segments, given what is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.core.ids import SHOWN_ID, alias, uuid7
from memoryos_server.domain.manage.checks import check_segment
from memoryos_server.domain.manage.model import KIND, NewSegment, kept, older, shown_id, versions_of
from memoryos_server.domain.ports import Change, HeatState, Record, Subject, Subjects, Vectors

EMBED_AT_ONCE = 1000
"""Imports of at most so many segments are found by meaning when the call returns."""

_AT_ONCE = 200
"""Segments looked at, or asked for, before others get their turn."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of an import.

    Attributes:
        ids: The segments' ids, in order.
        created: How many are new.
        updated: How many became new versions.
        unchanged: How many were there already.
        degraded: They are durable but wait to become searchable.
    """

    ids: tuple[str, ...] = ()
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    degraded: bool = False


async def check_all(segments: Sequence[NewSegment]) -> None:
    """Refuses segments of which one cannot be imported.

    Raises:
        Invalid: A field is malformed, or an id is given twice.
    """
    seen: set[str] = set()
    for index, new in enumerate(segments):
        if index % _AT_ONCE == 0:
            await asyncio.sleep(0)
        check_segment(new, f"segments[{index}]")
        if new.id is not None and new.id in seen:
            raise Invalid(f"segments[{index}].id is given twice", param=f"segments[{index}].id")
        if new.id is not None:
            seen.add(new.id)


class Import:
    """One import, which may have to be planned again when another change came between.

    Args:
        subjects: Who is known.
        vectors: The searchable side.
        subject: Whose segments they become.
        segments: The segments, checked.
        initial: The heat of a record made at a time.

    Attributes:
        tally: What becomes of them by the newest plan.
    """

    def __init__(
        self,
        subjects: Subjects,
        vectors: Vectors,
        subject: Subject,
        segments: Sequence[NewSegment],
        initial: Callable[[datetime], HeatState],
    ) -> None:
        self._subjects = subjects
        self._vectors = vectors
        self._subject = subject
        self._segments = segments
        self._initial = initial
        # Sorted, because an export gives segments in the order of ids: it shall be that of the request.
        self._fresh = sorted(uuid7() for new in segments if new.id is None)
        self.tally = Tally()

    async def plan(self, now: datetime) -> Change | None:
        """The change, or None if everything is there already.

        Raises:
            BackendDown: The searchable side is down.
        """
        named = [new.id for new in self._segments if new.id is not None]
        mine = await self._mine(named)
        taken = await self._taken([name for name in named if name not in mine])
        fresh = iter(self._fresh)
        put: list[Record] = []
        heat: dict[str, HeatState] = {}
        ids: list[str] = []
        updated = 0
        for index, new in enumerate(self._segments):
            if index % _AT_ONCE == 0:
                await asyncio.sleep(0)
            old = mine.get(new.id) if new.id is not None else None
            if old is not None:
                record = changed(new, old, now)
                updated += record is not None
                ids.append(shown_id(old))
            else:
                record_id = next(fresh) if new.id is None else taken.get(new.id, new.id)
                segment_id = new.id or record_id
                if not record_id:
                    record_id = segment_id = uuid7()
                record = created(new, record_id, segment_id, now)
                ids.append(segment_id)
            if record is None:
                continue
            put.append(record)
            warmth = heat_of(new, record, self._initial(record.created_at))
            if warmth is not None:
                heat[record.id] = warmth
        self.tally = Tally(tuple(ids), len(put) - updated, updated, len(ids) - len(put))
        return Change(put=tuple(put), heat=heat, embed=len(put) <= EMBED_AT_ONCE) if put else None

    async def _mine(self, ids: Sequence[str]) -> dict[str, Record]:
        """The subject's segments by the ids they are shown under."""
        asked = [name for segment_id in ids for name in (segment_id, alias(self._subject.id, segment_id))]
        mine: dict[str, Record] = {}
        for at in range(0, len(asked), _AT_ONCE):
            for record in await self._vectors.records(self._subject, asked[at : at + _AT_ONCE], history=True):
                if record.kind == KIND:
                    mine[shown_id(record)] = record
        return mine

    async def _taken(self, ids: Sequence[str]) -> dict[str, str]:
        """Which ids are not free, each with the id to keep its record under, "" for a quite new one.

        Ids are unique within a tenant. One that is in use in another tenant is kept, under an alias.
        """
        taken: dict[str, str] = {}
        for at in range(0, len(ids), _AT_ONCE):
            some = ids[at : at + _AT_ONCE]
            owners = await asyncio.gather(*(self._vectors.owner(name) for name in some))
            for name, owner in zip(some, owners, strict=True):
                if owner is not None:
                    other = await self._subjects.by_id(owner)
                    elsewhere = other is not None and other.tenant_id != self._subject.tenant_id
                    taken[name] = alias(self._subject.id, name) if elsewhere else ""
        return taken


def created(new: NewSegment, record_id: str, segment_id: str, now: datetime) -> Record:
    """The record of a segment that is not there yet; it is shown as `segment_id`."""
    made = new.created_at or now
    return Record(
        id=record_id,
        kind=KIND,
        version=new.version or (new.history[0].version + 1 if new.history else 1),
        text=new.summary,
        type=new.type,
        created_at=made,
        updated_at=new.updated_at or made,
        # A clock that is ahead elsewhere must not hide a segment here until its time comes.
        since=new.since or min(made, now),
        until=new.until,
        tags=new.tags,
        sources=new.source_ids,
        session_id=new.session_id,
        data=_data(new, {SHOWN_ID: segment_id} if segment_id != record_id else {}),
        history=kept(new.history),
    )


def changed(new: NewSegment, old: Record, now: datetime) -> Record | None:
    """The next version of a segment that is there, read with its history; None if it has the same text, tags and type.

    An import that continues the chain of versions that is there brings its own; else it is one version on top of it.
    """
    if (new.summary, new.tags, new.type) == (old.text, old.tags, old.type):
        return None
    shown = {SHOWN_ID: old.data[SHOWN_ID]} if SHOWN_ID in old.data else {}
    both = replace(
        old,
        text=new.summary,
        tags=new.tags,
        type=new.type,
        sources=new.source_ids or old.sources,
        session_id=new.session_id or old.session_id,
        until=new.until,
        data=_data(new, shown) if new.data else old.data,
    )
    if _continues(new, old):
        return replace(
            both,
            version=new.version or new.history[0].version + 1,
            created_at=new.created_at or old.created_at,
            updated_at=new.updated_at or now,
            since=new.since or old.since,
            history=kept(new.history),
        )
    return replace(both, version=old.version + 1, updated_at=now, history=older(old))


def _continues(new: NewSegment, old: Record) -> bool:
    chain = {version.version: (version.summary, version.tags) for version in new.history}
    mine = {version.version: (version.summary, version.tags) for version in versions_of(old)}
    mine[old.version] = (old.text, old.tags)
    return all(chain.get(number) == what for number, what in mine.items())


def _data(new: NewSegment, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What a segment brings, but for the id it is shown under: that is not for a file to say."""
    return {**{key: value for key, value in new.data.items() if key != SHOWN_ID}, **shown}


def heat_of(new: NewSegment, record: Record, usual: HeatState) -> HeatState | None:
    """The heat that a segment brings, completed by the usual one of a new record; None if it brings none."""
    if new.heat is None and new.access_count is None and new.last_accessed is None:
        return None
    return HeatState(
        heat=usual.heat if new.heat is None else new.heat,
        count=new.access_count or 0,
        last_accessed=new.last_accessed or record.updated_at,
    )
