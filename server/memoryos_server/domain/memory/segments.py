"""Mid-term memory: what was talked about, topic by topic, each with a summary of its turns.

A segment's id follows from its first turn, and a turn that is in a segment is never put into another one; so work that a
crash interrupted is repeated without doubling anything, however the turns are cut into batches the second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.memory.counts import Counts, Uncounted
from memoryos_server.domain.memory.extraction import extract
from memoryos_server.domain.memory.facts import Sighting, Slots, sightings
from memoryos_server.domain.memory.fencing import still_ours
from memoryos_server.domain.memory.model import Consolidated
from memoryos_server.domain.memory.summary import summarise, tags
from memoryos_server.domain.memory.topics import MAX_TURNS, SAME_TOPIC, Said, alike, pieces, topics
from memoryos_server.domain.ports import IndexedRecord, Record, RecordFilter, Subject, Turn, Vectors

KIND = "segment"
DEFAULT_TYPE = "qa"

MOST_LEFT = 10
"""The longest topic that is left to go on, in turns."""

MOST_FRESH = 40
"""From so many turns that wait, none is left."""

MOST_AT_ONCE = 400
"""How many turns one consolidation takes on; the rest is due at once."""

_READ_CHARS = 4_000  # of a turn, for its topic and its tags
_LOOK_BACK = 64
_BEFORE = 5
_MOST_TAGS = 64


@dataclass(frozen=True, slots=True)
class Gist:
    """What a segment says of its turns.

    Attributes:
        summary: In their language.
        tags: Folded, best first.
        by: `rules` or `llm`.
    """

    summary: str
    tags: tuple[str, ...]
    by: str = "rules"


class Indexing(Protocol):
    """What search needs of texts; the recall engine gives it."""

    async def terms_and_vectors(
        self, texts: Sequence[str]
    ) -> list[tuple[dict[str, float], Mapping[str, Sequence[float]]]]:
        """For each text, its terms and vectors."""


class Summariser(Protocol):
    """A model that may say it better than rules do."""

    async def improve(self, turns: Sequence[Turn], gist: Gist) -> Gist:
        """A better gist, or the given one; never fails, in bounded time."""


class Beliefs(Protocol):
    """What is believed of what was said."""

    async def contradicted(self, subject: Subject, memory_ids: Sequence[str]) -> set[tuple[str, int]]:
        """Turn and place of what those turns state and nobody believes any more."""

    async def outdated_by(self, subject: Subject, memory_ids: Sequence[str]) -> Mapping[str, datetime]:
        """Other turns that state what those turns contradict, and since when it is not believed any more."""


@dataclass(frozen=True, slots=True)
class Language:
    """Tools for words.

    Attributes:
        fold: A text in one form for comparing.
        stem: The stem of a word.
        terms: The terms of a text and their weights.
    """

    fold: Callable[[str], str]
    stem: Callable[[str], str]
    terms: Callable[[str], Mapping[str, float]]


class Consolidator:
    """`domain.memory.model.Consolidation`.

    Args:
        vectors: The searchable side.
        indexing: Terms and vectors.
        language: Tools for words.
        beliefs: What was contradicted since.
        summariser: A model, or None: rules alone.
        idle: After so long without a turn, a conversation is over; nothing of it is left waiting.
        counts: Is told what was written.
        clock: The present time.
    """

    def __init__(
        self,
        vectors: Vectors,
        indexing: Indexing,
        language: Language,
        beliefs: Beliefs,
        *,
        summariser: Summariser | None = None,
        idle: timedelta = timedelta(minutes=30),
        counts: Counts | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._vectors = vectors
        self._indexing = indexing
        self._language = language
        self._beliefs = beliefs
        self._slots = Slots(language.fold)
        self._summariser = summariser
        self._idle = idle
        self._counts = counts or Uncounted()
        self._clock = clock

    async def consolidate(self, subject: Subject, memory_ids: Sequence[str], now: datetime) -> Consolidated:
        """Writes segments of those turns that belong to a topic that is over, or of all if the conversation is idle.

        Raises:
            BackendDown: The searchable side does not answer. Repeating changes nothing that was written.
        """
        if not memory_ids:
            return Consolidated(())
        more, memory_ids = memory_ids[MOST_AT_ONCE:], memory_ids[:MOST_AT_ONCE]
        held = await self._held(subject, memory_ids)
        waiting = [memory_id for memory_id in memory_ids if memory_id not in held]
        turns = await self._vectors.get(subject, waiting)
        # A turn that is fresh but not found was taken back meanwhile.
        there = {turn.id for turn in turns}
        done = [memory_id for memory_id in memory_ids if memory_id not in there]
        next_due: datetime | None = None
        for said in await self._sessions(turns):
            parts = pieces(said, self._idle)
            for part in parts:
                found = topics(part)
                last = found[-1][-1].turn
                if (
                    part is parts[-1]
                    and len(found[-1]) <= MOST_LEFT
                    and len(waiting) < MOST_FRESH
                    and abs(now - last.timestamp) < self._idle
                ):
                    due = last.timestamp + self._idle
                    next_due = due if next_due is None else min(due, next_due)
                    found.pop()
                for at, topic in enumerate(found):
                    await self._write(subject, topic, go_on=at == 0)
                    done += [one.turn.id for one in topic]
        await self._revise(subject, done)
        return Consolidated(done, now if more else next_due)

    async def rebuild(self, subject: Subject, record: Record, turns: Sequence[Turn]) -> Record:
        """The segment made again of the turns that are left to it; labels that people gave it stay, old versions go.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        order = sorted(turns, key=_order)
        return replace(await self._made(subject, order, record), id=record.id, version=record.version + 1, history=())

    async def _held(self, subject: Subject, memory_ids: Sequence[str]) -> set[str]:
        """Which turns are in segments already."""
        held: set[str] = set()
        wanted = set(memory_ids)
        async for record in self._vectors.scan(subject, RecordFilter(KIND, sources=tuple(memory_ids))):
            held |= wanted.intersection(record.sources)
        return held

    async def _sessions(self, turns: Sequence[Turn]) -> list[list[Said]]:
        order = sorted(turns, key=_order)
        indexed = await self._indexing.terms_and_vectors([turn.content[:_READ_CHARS] for turn in order])
        sessions: dict[str, list[Said]] = {}
        for turn, (terms, dense) in zip(order, indexed, strict=True):
            sessions.setdefault(turn.session_id, []).append(Said(turn, terms, dense))
        return list(sessions.values())

    async def _write(self, subject: Subject, topic: Sequence[Said], *, go_on: bool) -> None:
        turns = [one.turn for one in topic]
        record = await self._continued(subject, topic) if go_on else None
        if record is None:
            record = replace(await self._made(subject, turns, None), id=derived_uuid(KIND, subject.id, turns[0].id))
        await self._put(subject, record)

    async def _put(self, subject: Subject, record: Record) -> None:
        ((terms, dense),) = await self._indexing.terms_and_vectors([record.text])
        await still_ours()
        await self._vectors.put(subject, [IndexedRecord(record, terms, dense)])
        self._counts.wrote(KIND, 1)

    async def _revise(self, subject: Subject, memory_ids: Sequence[str]) -> None:
        """Makes new versions of the segments that quote as true what these turns contradict."""
        outdated = await self._beliefs.outdated_by(subject, memory_ids) if memory_ids else {}
        if not outdated:
            return
        chosen = RecordFilter(KIND, type=DEFAULT_TYPE, sources=tuple(outdated))
        for record in [record async for record in self._vectors.scan(subject, chosen, history=True)]:
            if "last_at" not in record.data:
                continue  # somebody wrote it down
            turns = sorted(await self._vectors.get(subject, record.sources), key=_order)
            made = await self._made(subject, turns, record)
            if made.text != record.text:
                # A question as of the time before must not see what was said after.
                since = max([record.since, *(outdated[s] for s in record.sources if s in outdated)])
                history = (older(record), *record.history)
                await self._put(
                    subject, replace(made, id=record.id, version=record.version + 1, since=since, history=history)
                )

    async def _continued(self, subject: Subject, topic: Sequence[Said]) -> Record | None:
        """The session's last segment with these turns added, as a new version, if they go on with its topic."""
        first = topic[0].turn
        around = await self._vectors.said(subject, first.session_id, max(0, first.seq - _LOOK_BACK), _LOOK_BACK)
        before = [t for t in around if t.seq < first.seq and first.timestamp - t.timestamp <= self._idle][-_BEFORE:]
        if not before:
            return None
        chosen = RecordFilter(KIND, type=DEFAULT_TYPE, sources=tuple(turn.id for turn in before))
        found, _ = await self._vectors.page(subject, chosen, 0, _BEFORE, history=True)
        record = max(found, key=lambda r: (r.since, r.id), default=None)
        if record is None or "last_at" not in record.data or len(record.sources) + len(topic) > MAX_TURNS:
            return None
        old = sorted(await self._vectors.get(subject, record.sources), key=_order)
        (last,) = await self._sessions(old) or [[]]
        if not last or alike(last, topic) < SAME_TOPIC:
            return None
        made = await self._made(subject, [*old, *(one.turn for one in topic)], record)
        return replace(made, id=record.id, version=record.version + 1, history=(older(record), *record.history))

    async def _made(self, subject: Subject, turns: Sequence[Turn], before: Record | None) -> Record:
        over = await self._beliefs.contradicted(subject, [turn.id for turn in turns])
        gist = await asyncio.to_thread(self._gist, turns, over)
        # A model sees these turns only: it does not know what was contradicted elsewhere.
        if self._summariser is not None and not over:
            gist = await self._summariser.improve(turns, gist)
        now = self._clock()
        given: tuple[str, ...] = ()
        if before is not None:
            derived = set(before.data.get("derived_tags", ()))
            given = tuple(tag for tag in before.tags if tag not in derived)
        return Record(
            id="",
            kind=KIND,
            version=1,
            text=gist.summary,
            type=before.type if before is not None else DEFAULT_TYPE,
            created_at=before.created_at if before is not None else now,
            updated_at=now,
            # Not before its last turn: a question as of an earlier time must not see what was said after.
            since=max(turn.timestamp for turn in turns) if turns else now,
            tags=(*given, *(tag for tag in gist.tags if tag not in given))[:_MOST_TAGS],
            sources=tuple(turn.id for turn in turns),
            session_id=turns[0].session_id if turns else "",
            data={
                "derived_tags": list(gist.tags),
                "by": gist.by,
                "first_at": _iso(turns[0].timestamp) if turns else None,
                "last_at": _iso(turns[-1].timestamp) if turns else None,
            },
        )

    def _gist(self, turns: Sequence[Turn], over: set[tuple[str, int]]) -> Gist:
        untrue = self._untrue(turns, over)
        fold, stem = self._language.fold, self._language.stem
        said = [turn.content[:_READ_CHARS] for turn in turns]
        speakers = {word for turn in turns for word in fold(turn.name).split()}
        return Gist(
            summarise(
                turns,
                self._language.terms,
                untrue=lambda at, sentence: any(quote in sentence for quote in untrue.get(at, ())),
            ),
            tuple(tags(said, fold, stem, self._language.terms, common=speakers)),
        )

    def _untrue(self, turns: Sequence[Turn], over: set[tuple[str, int]]) -> dict[int, list[str]]:
        """Place of a turn -> what it says that is contradicted by a later one of these, or by any."""
        seen: list[Sighting] = []
        quotes: dict[tuple[str, int], tuple[int, str]] = {}
        for at, turn in enumerate(turns):
            facts = extract(
                turn.content[:_READ_CHARS],
                speaker=turn.name,
                role=turn.role,
                said_at=turn.timestamp,
                fold=self._language.fold,
            ).facts
            for index, fact in enumerate(facts):
                quotes[turn.id, index] = at, " ".join(fact.quote.split())
            seen += sightings(turn, facts, turn.timestamp)
        untrue: dict[int, list[str]] = {}
        for key in self._slots.contradicted(seen) | (over & quotes.keys()):
            at, quote = quotes[key]
            if quote:
                untrue.setdefault(at, []).append(quote)
        return untrue


def older(record: Record) -> dict[str, Any]:
    """A version of a segment as its history keeps it."""
    return {
        "id": record.id,
        "version": record.version,
        "summary": record.text,
        "tags": list(record.tags),
        "created_at": _iso(record.created_at),
        "updated_at": _iso(record.updated_at),
    }


def _order(turn: Turn) -> tuple[datetime, int, str]:
    return turn.timestamp, turn.seq, turn.id


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
