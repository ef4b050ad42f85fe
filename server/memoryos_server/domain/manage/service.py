"""What a user does with the segments of his mid-term memory: tags, versions, export, import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import BackendDown, Invalid, NotFound
from memoryos_server.domain.core.ids import SHOWN_ID, kept_ids
from memoryos_server.domain.core.level import Level
from memoryos_server.domain.core.text import check_id
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.manage.checks import MAX_SEGMENTS, MAX_TAGS, check_tags
from memoryos_server.domain.manage.importing import Import, Tally, check_all
from memoryos_server.domain.manage.model import (
    KIND,
    NewSegment,
    Segment,
    Version,
    is_uuid,
    older,
    present,
    segment_of,
    versions_of,
)
from memoryos_server.domain.ports import Change, HeatState, HeatStore, Record, RecordFilter, Subject, Subjects, Vectors
from memoryos_server.domain.ports.shield import UNSHIELDED, Shield

MAX_LIMIT = 1000
DEFAULT_LIMIT = 50

_PIECE_SEGMENTS = 100
_PIECE_CHARACTERS = 256 * 1024


class Changes(Protocol):
    """How memory is changed: accepted durably first, then applied to the searchable side."""

    @property
    def level(self) -> Level:
        """Whether what was acknowledged may be missing from the searchable side."""

    async def change(
        self, subject: Subject, make: Callable[[], Awaitable[Change | None]], *, reads: bool = True
    ) -> bool:
        """Applies what `make` gives, which may be asked again if another change came between; whether that is degraded."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """A segment after a change of its tags."""

    version: int
    tags: tuple[str, ...]
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Segments by tag: `total` is how many there are, listed or not; their heat is as of now."""

    segments: Sequence[Segment]
    total: int
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """All segments of a user, in pieces, in the order of ids; their heat is as of `last_accessed`."""

    user_id: str
    exported_at: datetime
    count: int
    pieces: AsyncIterator[Sequence[Segment]]


class SegmentService:
    """A user's segments.

    Args:
        subjects: Who is known.
        vectors: The searchable side.
        heat: How often segments are used.
        changes: How they are changed.
        initial: The heat of a record made at a time.
        decayed: The heat of a state at a later time.
        shield: Looks at what is imported, and cleans it.
        clock: The present time.
    """

    def __init__(
        self,
        subjects: Subjects,
        vectors: Vectors,
        heat: HeatStore,
        changes: Changes,
        *,
        initial: Callable[[datetime], HeatState],
        decayed: Callable[[HeatState, datetime], float],
        shield: Shield = UNSHIELDED,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._subjects = subjects
        self._shield = shield
        self._vectors = vectors
        self._heat = heat
        self._changes = changes
        self._initial = initial
        self._decayed = decayed
        self._clock = clock

    async def add_tags(self, who: Caller, user_id: str, segment_id: str, tags: Sequence[str]) -> Tagged:
        """Adds those tags that the segment lacks, as a new version; if it lacks none, nothing changes.

        Raises:
            Invalid: A tag is malformed, or the segment would have more than 64.
            NotFound: The user has no such segment.
            Forbidden: The caller may not act for the user.
            BackendDown: A store is down.
        """

        def with_tags(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
            both = tuple(dict.fromkeys((*old, *new)))
            if len(both) > max(MAX_TAGS, len(old)):
                raise Invalid(f"tags: the segment has {len(old)} tags and may have {MAX_TAGS}", param="tags")
            return both

        return await self._retag(who, user_id, segment_id, tags, with_tags)

    async def remove_tags(self, who: Caller, user_id: str, segment_id: str, tags: Sequence[str]) -> Tagged:
        """Takes tags off the segment, as a new version; if it has none of them, nothing changes.

        Raises:
            As `add_tags`.
        """
        return await self._retag(
            who, user_id, segment_id, tags, lambda old, gone: tuple(tag for tag in old if tag not in gone)
        )

    async def _retag(
        self,
        who: Caller,
        user_id: str,
        segment_id: str,
        tags: Sequence[str],
        change: Callable[[tuple[str, ...], tuple[str, ...]], tuple[str, ...]],
    ) -> Tagged:
        owner = who.owner(user_id)
        check_id(segment_id, "segment_id")
        wanted = check_tags(tags, "tags", least=1)
        subject = await self._known(who, owner)
        await self._changes.level.caught_up()
        done = Tagged(0, ())

        async def make() -> Change | None:
            nonlocal done
            old = await self._record(subject, segment_id)
            new = change(old.tags, wanted)
            if new == old.tags:
                done = Tagged(old.version, old.tags)
                return None
            done = Tagged(old.version + 1, new)
            return Change(
                put=(replace(old, version=done.version, tags=new, updated_at=self._clock(), history=older(old)),)
            )

        degraded = await self._changes.change(subject, make)
        return replace(done, degraded=degraded)

    async def search(
        self, who: Caller, user_id: str, tags: Sequence[str], *, limit: int | None = None, match_all: bool = False
    ) -> Found:
        """The segments with any, or all, of the tags, newest first; none for a user never heard of.

        Raises:
            Invalid: A tag is malformed, or the limit out of range.
            Forbidden: The caller may not act for the user.
            BackendDown: The searchable side is down.
        """
        owner = who.owner(user_id)
        wanted = check_tags(tags, "tags", least=1)
        if limit is not None and not 1 <= limit <= MAX_LIMIT:
            raise Invalid(f"limit must be 1..{MAX_LIMIT}", param="limit")
        subject = await self._subjects.find(who.tenant_id, owner)
        if subject is None:
            return Found((), 0)
        chosen = RecordFilter(KIND, tags=wanted, match_all=match_all)
        (records, total), lacking = await self._changes.level.read(
            lambda: self._vectors.page(subject, chosen, 0, limit or DEFAULT_LIMIT)
        )
        now = self._clock()
        try:
            states, cold = await self._heat.get(subject, [record.id for record in records]), False
        except BackendDown:
            states, cold = {}, True  # heat is an ornament here: the segments are found all the same
        segments = [
            replace(segment_of(record, state), heat=self._decayed(state, now))
            for record in records
            for state in [states.get(record.id) or self._initial(record.created_at)]
        ]
        return Found(segments, total, cold or lacking)

    async def versions(self, who: Caller, user_id: str, segment_id: str) -> list[Version]:
        """Every version of a segment, newest first.

        Raises:
            NotFound: The user has no such segment.
            Forbidden: The caller may not act for the user.
            BackendDown: The searchable side is down.
        """
        owner = who.owner(user_id)
        check_id(segment_id, "segment_id")
        subject = await self._known(who, owner)
        record = await self._changes.level.sure(lambda: self._record(subject, segment_id))
        return [present(record), *versions_of(record)]

    async def export(self, who: Caller, user_id: str) -> Export:
        """All segments of a user with their versions, complete whatever their number.

        Raises:
            Forbidden: The caller may not act for the user.
            BackendDown: A store is down, or something acknowledged may be missing for now; also midway.
        """
        owner = who.owner(user_id)
        subject = await self._subjects.find(who.tenant_id, owner)
        now = self._clock()
        if subject is None:
            return Export(owner, now, 0, _nothing())
        mark = await self._changes.level.whole()
        _, count = await self._vectors.page(subject, RecordFilter(KIND), 0, 1)
        return Export(owner, now, count, self._pieces(subject, mark))

    async def _pieces(self, subject: Subject, mark: int) -> AsyncIterator[Sequence[Segment]]:
        piece: list[Record] = []
        size = 0
        async for record in self._vectors.scan(subject, RecordFilter(KIND), history=True):
            piece.append(record)
            size += len(record.text) * (1 + len(record.history))
            if len(piece) >= _PIECE_SEGMENTS or size >= _PIECE_CHARACTERS:
                yield await self._warm(subject, piece)
                self._changes.level.check_since(mark)
                piece, size = [], 0
        if piece:
            yield await self._warm(subject, piece)
        self._changes.level.check_since(mark)

    async def _warm(self, subject: Subject, records: Sequence[Record]) -> list[Segment]:
        states = await self._heat.get(subject, [record.id for record in records])
        return [segment_of(record, states.get(record.id) or self._initial(record.created_at)) for record in records]

    async def import_segments(self, who: Caller, user_id: str, segments: Sequence[NewSegment]) -> Tally:
        """Adds segments, all or none; they are seen together. What is there with the same text, tags and type stays.

        Raises:
            Invalid: A segment is malformed, or there are none or more than 10,000; nothing was written.
            Forbidden: The caller may not act for the user.
            BackendDown: A store is down.
        """
        owner = who.owner(user_id)
        if not 1 <= len(segments) <= MAX_SEGMENTS:
            raise Invalid(f"segments must be 1..{MAX_SEGMENTS:,}, not {len(segments):,}", param="segments")
        await check_all(segments)
        texts = [one.summary for one in segments]
        await self._shield.look(who, texts, where="memory", param="segments", owner=owner)
        segments = await asyncio.to_thread(_cleaned, segments, self._shield.clean)
        subject = await self._subjects.open(who.tenant_id, owner)
        await self._changes.level.caught_up()
        work = Import(self._subjects, self._vectors, subject, segments, self._initial)

        async def make() -> Change | None:
            return await work.plan(self._clock())

        degraded = await self._changes.change(subject, make)
        return replace(work.tally, degraded=degraded)

    async def _known(self, who: Caller, owner: str) -> Subject:
        subject = await self._subjects.find(who.tenant_id, owner)
        if subject is None:
            raise _no_segment()
        return subject

    async def _record(self, subject: Subject, segment_id: str) -> Record:
        if not is_uuid(segment_id):
            raise _no_segment()
        asked = kept_ids(subject.id, segment_id)
        found = [r for r in await self._vectors.records(subject, asked, history=True) if r.kind == KIND]
        if not found:
            raise _no_segment()
        # Shown under this id, or kept under it and shown under another.
        return next((record for record in found if record.data.get(SHOWN_ID) == segment_id), found[0])


def _cleaned(segments: Sequence[NewSegment], clean: Callable[[str], str]) -> list[NewSegment]:
    return [
        replace(
            one,
            summary=clean(one.summary),
            history=tuple(replace(version, summary=clean(version.summary)) for version in one.history),
        )
        for one in segments
    ]


async def _nothing() -> AsyncIterator[Sequence[Segment]]:
    return
    yield


def _no_segment() -> NotFound:
    return NotFound("There is no such segment", param="segment_id")
