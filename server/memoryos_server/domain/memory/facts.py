"""What is believed, since when and until when: facts that nothing said later has contradicted, and those that it has.

Two times are kept. *Belief*: a fact is believed from when it was said until something said contradicted it
(`Record.since`, `Record.until`). *Validity*: from when to when it held in the world, as far as the words tell
(`valid_from`, `valid_to` in its data). A contradicted fact is closed and never deleted, so a question as of an earlier time
gets the answer of that time.

What somebody said of one matter (a subject's home, or whether a subject likes coffee) is a **slot**. A slot's facts are a
pure function of its sightings, and each fact keeps its own. So the order in which turns arrive, how they are cut
into batches, and how often work is repeated after a crash make no difference. That is also why taking a turn back can
bring the belief before it back.

A denial ("I don't live in Rome") closes the belief it denies. One that denies nothing believed is no fact, and nobody
is told of it; it is kept as a `denial` beside the slot's facts, because what it denies may come late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.memory.extraction.model import PREDICATES, SPEAKER, Fact, predicate
from memoryos_server.domain.ports import Record, Subject, Turn

KIND = "fact"
DENIAL = "denial"
"""The kind of the one record of a slot that keeps denials of what was not believed. It is neither searched nor listed."""

FIRST_KEPT, LAST_KEPT = 4, 12
"""Of the sightings of a fact, so many of the first and of the last are kept."""

MOST_CONFIDENT = 0.99

_EDGES = " \t\n.,;:!?'\"()[]。,，；：！？、“”‘’「」《》"
_ARTICLES = ("the ", "a ", "an ", "my ", "一只", "一条", "一匹")


@dataclass(frozen=True, slots=True, order=True)
class Sighting:
    """A fact as one turn states it.

    Sightings sort by when they were said; of one instant, by acceptance, and within a turn by place.
    """

    at: datetime
    seq: int
    source: str
    index: int
    who: str = field(compare=False)
    predicate: str = field(compare=False)
    value: str = field(compare=False)
    sentence: str = field(compare=False)
    confidence: float = field(compare=False)
    ended: bool = field(compare=False)
    denied: bool = field(compare=False)
    valid_from: datetime | None = field(compare=False)
    valid_to: datetime | None = field(compare=False)
    recorded: datetime = field(compare=False)


@dataclass(slots=True)
class _Belief:
    """A run of sightings that say the same."""

    key: tuple[str, str]
    seen: list[Sighting]
    until: datetime | None = None
    valid_to: datetime | None = None
    touched: datetime | None = None


def sightings(turn: Turn, facts: Sequence[Fact], recorded: datetime) -> list[Sighting]:
    """What a turn states. A speaker with a name is known by it."""
    return [
        Sighting(
            at=turn.timestamp,
            seq=turn.seq,
            source=turn.id,
            index=index,
            who=(turn.name or SPEAKER) if fact.subject == SPEAKER else fact.subject,
            predicate=fact.predicate,
            value=fact.value,
            sentence=fact.sentence,
            confidence=fact.confidence,
            ended=fact.ended,
            denied=fact.denied,
            valid_from=fact.valid_from,
            valid_to=fact.valid_to,
            recorded=recorded,
        )
        for index, fact in enumerate(facts)
        if fact.value or fact.single  # "whatever it was" has no place among many values
    ]


class Slots:
    """Sorts sightings into slots, and makes the records of a slot.

    Args:
        fold: A text in one form for comparing.
    """

    def __init__(self, fold: Callable[[str], str]) -> None:
        self._fold = fold

    def of(self, sighting: Sighting) -> str:
        """The slot of a sighting."""
        about = predicate(sighting.predicate)
        family = min(about.name, about.opposite) if about.opposite else about.name
        parts = [self._fold(sighting.who).strip(), family]
        if not about.single:
            parts.append(self.value(sighting.value))
        return derived_uuid("slot", *parts)

    def value(self, value: str) -> str:
        """A value in one form for comparing."""
        folded = " ".join(self._fold(value).split()).strip(_EDGES)
        for article in _ARTICLES:
            folded = folded.removeprefix(article)
        return folded

    def records(self, subject: Subject, slot: str, seen: Iterable[Sighting], stored: Sequence[Record]) -> list[Record]:
        """The facts of a slot, oldest first, and its denials that closed none.

        Args:
            subject: Whose.
            slot: The slot.
            seen: All of its sightings, in any order, repeats allowed.
            stored: Its records so far: their versions are not fallen short of.
        """
        # A sighting that is repeated was recorded when it was first.
        unique: dict[tuple[str, int], Sighting] = {}
        for sighting in seen:
            key = sighting.source, sighting.index
            if key not in unique or sighting.recorded < unique[key].recorded:
                unique[key] = sighting
        before = {record.id: record for record in stored}
        made = []
        beliefs, loose = self._beliefs(sorted(unique.values()))
        wanted = [self._record(subject, slot, belief, len(unique)) for belief in beliefs]
        if loose:
            wanted.append(_denials(subject, slot, loose, len(unique)))
        for record in wanted:
            old = before.get(record.id)
            if old is not None and _says(old) == _says(record):
                record = old
            elif old is not None and old.version >= record.version:
                record = replace(record, version=old.version + 1)
            made.append(record)
        return made

    def contradicted(self, seen: Sequence[Sighting]) -> set[tuple[str, int]]:
        """Source and index of the sightings that later ones of these contradict."""
        slots: dict[str, list[Sighting]] = {}
        for one in sorted(seen):
            slots.setdefault(self.of(one), []).append(one)
        return {
            (one.source, one.index)
            for same in slots.values()
            for belief in self._beliefs(same)[0]
            if belief.until is not None
            for one in belief.seen
            if not one.ended
        }

    def _beliefs(self, seen: Sequence[Sighting]) -> tuple[list[_Belief], list[Sighting]]:
        """What is or was believed, and the denials that deny none of it."""
        beliefs: list[_Belief] = []
        loose: list[Sighting] = []
        current: _Belief | None = None
        for one in seen:
            key = one.predicate, self.value(one.value)
            if one.ended:
                if current is not None and _ends(key, current.key):
                    current.seen.append(one)
                    current.until, current.valid_to = one.at, one.valid_to or one.at
                    current.touched = one.recorded
                    current = None
                elif one.denied:
                    loose.append(one)
                else:
                    _add_past(beliefs, key, one)
            elif predicate(one.predicate).single and one.valid_to is not None and one.valid_to <= one.at:
                _add_past(beliefs, key, one)  # "I lived in Rome until 2010": true, and not where the home is
            elif current is not None and current.key == key:
                current.seen.append(one)
                current.touched = one.recorded
            else:
                if current is not None:
                    current.until, current.touched = one.at, one.recorded
                    current.valid_to = one.valid_from or one.at
                current = _Belief(key, [one], valid_to=one.valid_to, touched=one.recorded)
                beliefs.append(current)
        return beliefs, loose

    def _record(self, subject: Subject, slot: str, belief: _Belief, version: int) -> Record:
        first = belief.seen[0]
        _shorten(belief.seen)
        said = [one for one in belief.seen if not one.ended] or belief.seen
        starts = [one.valid_from for one in said if one.valid_from is not None]
        last = said[-1]
        return Record(
            id=derived_uuid(KIND, subject.id, slot, *belief.key, first.source, str(first.index)),
            kind=KIND,
            version=version,
            text=_searchable(last),
            type=first.predicate,
            created_at=first.recorded,
            updated_at=belief.touched or first.recorded,
            since=first.at,
            until=belief.until,
            tags=(slot,),
            sources=tuple(dict.fromkeys(one.source for one in belief.seen)),
            data={
                "who": last.who,
                "predicate": last.predicate,
                "value": last.value,
                "sentence": last.sentence,
                "polarity": "ended" if last.ended else "asserted",
                "confidence": _confidence(said),
                "valid_from": _iso(starts[0] if starts else None),
                "valid_to": _iso(belief.valid_to),
                "recorded_at": _iso(first.recorded),
                "group": predicate(last.predicate).group,
                "seen": [_packed(one) for one in belief.seen],
            },
        )


def denial_id(subject: Subject, slot: str) -> str:
    """The id of the record that keeps a slot's denials."""
    return derived_uuid(DENIAL, subject.id, slot)


def _denials(subject: Subject, slot: str, loose: list[Sighting], version: int) -> Record:
    """Denials of what was not believed: found by their slot and sources only."""
    _shorten(loose)
    recorded = min(one.recorded for one in loose)
    return Record(
        id=denial_id(subject, slot),
        kind=DENIAL,
        version=version,
        text=_searchable(loose[-1]),
        type=loose[0].predicate,
        created_at=recorded,
        updated_at=max(one.recorded for one in loose),
        since=loose[0].at,
        tags=(slot,),
        sources=tuple(dict.fromkeys(one.source for one in loose)),
        data={"seen": [_packed(one) for one in loose]},
    )


def _shorten(seen: list[Sighting]) -> None:
    if len(seen) > FIRST_KEPT + LAST_KEPT:
        seen[FIRST_KEPT:-LAST_KEPT] = []


def seen_in(record: Record) -> list[Sighting]:
    """The sightings a fact keeps, of turns that are still among its sources."""
    return [_unpacked(item) for item in record.data["seen"] if item["source"] in record.sources]


def order_of(name: str) -> int:
    """The place of a predicate in the list of all; favourites go with likes."""
    return _ORDER.get(name, _ORDER["likes"])


_ORDER = {name: n for n, name in enumerate(PREDICATES)}


def _ends(key: tuple[str, str], current: tuple[str, str]) -> bool:
    return key[0] == current[0] and (not key[1] or key[1] == current[1])


def _add_past(beliefs: list[_Belief], key: tuple[str, str], one: Sighting) -> None:
    """What is over when it is said was never believed to be so now: closed from the start."""
    beliefs.append(_Belief(key, [one], one.at, one.valid_to or one.at, one.recorded))


def _confidence(said: Sequence[Sighting]) -> float:
    """Turns that say the same are taken as independent grounds."""
    doubt = 1.0
    by_source = {one.source: one.confidence for one in said}
    for confidence in by_source.values():
        doubt *= 1 - confidence
    return round(max(max(by_source.values()), min(MOST_CONFIDENT, 1 - doubt)), 4)


def _searchable(one: Sighting) -> str:
    text = one.sentence or one.value
    if one.value not in text:
        text = f"{text} ({one.value})"
    return text if one.who == SPEAKER or one.who in text else f"{one.who}: {text}"


def _says(record: Record) -> tuple[object, ...]:
    return record.text, record.type, record.since, record.until, record.tags, record.sources, dict(record.data)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _packed(one: Sighting) -> dict[str, Any]:
    packed: dict[str, Any] = {
        "at": _iso(one.at),
        "seq": one.seq,
        "source": one.source,
        "index": one.index,
        "who": one.who,
        "predicate": one.predicate,
        "value": one.value,
        "sentence": one.sentence,
        "confidence": one.confidence,
        "recorded": _iso(one.recorded),
    }
    if one.ended:
        packed["ended"] = True
    if one.denied:
        packed["denied"] = True
    if one.valid_from is not None:
        packed["from"] = _iso(one.valid_from)
    if one.valid_to is not None:
        packed["to"] = _iso(one.valid_to)
    return packed


def _unpacked(item: Mapping[str, Any]) -> Sighting:
    return Sighting(
        at=datetime.fromisoformat(item["at"]),
        seq=item["seq"],
        source=item["source"],
        index=item["index"],
        who=item["who"],
        predicate=item["predicate"],
        value=item["value"],
        sentence=item["sentence"],
        confidence=item["confidence"],
        ended=item.get("ended", False),
        denied=item.get("denied", False),
        valid_from=_moment(item.get("from")),
        valid_to=_moment(item.get("to")),
        recorded=datetime.fromisoformat(item["recorded"]),
    )
