"""How turns and records become points of the vector store and back: the same for every engine.

A point's payload is readable where a filter or a ranking needs it, keyed where that would tell something, and sealed
otherwise. Must not know of engines.

| field | episode | record |
|---|---|---|
| `s` | `<subject>` | `<subject>/<kind>`: each kind is a corpus of its own |
| `t` | the sealed turn | the sealed record without its history |
| `a` | the version of the analysis its terms come from | the same |
| `n` | keyed hash of its session, "" if none | the same |
| `ts` | when it was said, Unix seconds | since when it is believed |
| `q` | its place in the order of acceptance | |
| `p` | keyed numbers of the words of its speaker's name | |
| `f` | small numbers for ranking | |
| `v` | | its version |
| `h` | | its sealed history |
| `y` | | keyed hash of its type |
| `g` | | keyed hashes of its tags |
| `src` | | keyed hashes of its sources |
| `te` | | until when it was believed; absent if it still is |
| `cr` | | when it was made, Unix seconds |
"""

from __future__ import annotations

import array
import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from memoryos_server.domain.ports import (
    IndexedRecord,
    IndexedTurn,
    Record,
    RecordFilter,
    Subject,
    Turn,
)
from memoryos_server.stores.scope import Scope
from memoryos_server.stores.sealing import Sealer

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Point:
    """A turn or a record as an engine keeps it.

    Attributes:
        id: The memory id.
        indices: Keyed terms, ascending.
        values: Their weights.
        dense: Vector name -> float32 bytes in the machine's order.
        payload: As above.
    """

    id: str
    indices: list[int]
    values: list[float]
    dense: Mapping[str, bytes]
    payload: Mapping[str, Any]


def point(subject: Subject, turn: IndexedTurn, sealer: Sealer, analysis: int) -> Point:
    """The point of a turn."""
    indices, values = sparse(turn.terms, sealer)
    scope = Scope(subject, sealer)
    said = turn.turn
    payload: dict[str, Any] = {
        "s": scope.corpus(),
        "a": analysis,
        "n": scope.session(said.session_id),
        "ts": said.timestamp.timestamp(),
        "q": said.seq,
        "p": names(turn.names, sealer),
        "f": list(turn.hints),
        "t": seal_turn(said, sealer),
    }
    return Point(said.id, indices, values, {name: dense(vector) for name, vector in turn.dense.items()}, payload)


def record_point(subject: Subject, indexed: IndexedRecord, sealer: Sealer, analysis: int) -> Point:
    """The point of a record."""
    indices, values = sparse(indexed.terms, sealer)
    scope = Scope(subject, sealer)
    record = indexed.record
    payload: dict[str, Any] = {
        "s": scope.corpus(record.kind),
        "a": analysis,
        "n": scope.session(record.session_id),
        "ts": record.since.timestamp(),
        "v": record.version,
        "y": sealer.equality("type", record.type),
        "g": [sealer.equality("tag", tag) for tag in record.tags],
        "src": [sealer.equality("source", source) for source in record.sources],
        "cr": record.created_at.timestamp(),
        "t": _seal_record(record, sealer),
        "h": _seal(_history(record.id), list(record.history), sealer),
    }
    if record.until is not None:
        payload["te"] = record.until.timestamp()
    vectors = {name: dense(vector) for name, vector in indexed.dense.items()}
    return Point(record.id, indices, values, vectors, payload)


def chosen(scope: Scope, wanted: RecordFilter, sealer: Sealer, now: datetime) -> dict[str, Any]:
    """A filter of records as an engine takes it: `s`, and where they are asked for `y`, `any`, `all`, `src`, `at`."""
    made: dict[str, Any] = {"s": scope.corpus(wanted.kind)}
    if wanted.type is not None:
        made["y"] = sealer.equality("type", wanted.type)
    if wanted.tags:
        made["all" if wanted.match_all else "any"] = [sealer.equality("tag", tag) for tag in wanted.tags]
    if wanted.sources:
        made["src"] = [sealer.equality("source", source) for source in wanted.sources]
    if wanted.current:
        made["at"] = now.timestamp()
    return made


def record_fields(history: bool) -> tuple[str, ...]:
    """What is read of a record's payload: corpus, text, and if asked for its earlier versions."""
    return ("s", "t", "h") if history else ("s", "t")


def names(words: Iterable[str], sealer: Sealer) -> list[int]:
    """The keyed numbers of a name's words, ascending."""
    return sorted({sealer.term(word) for word in words})


def sparse(terms: Mapping[str, float], sealer: Sealer) -> tuple[list[int], list[float]]:
    """Keyed terms, ascending, and their weights. The weights of terms whose hashes collide add up."""
    weights: dict[int, float] = {}
    for term, weight in terms.items():
        key = sealer.term(term)
        weights[key] = weights.get(key, 0.0) + weight
    ordered = sorted(weights.items())
    return [key for key, _ in ordered], [weight for _, weight in ordered]


def dense(vector: Sequence[float]) -> bytes:
    """A vector as float32 bytes."""
    return array.array("f", vector).tobytes()


def seal_turn(turn: Turn, sealer: Sealer) -> str:
    """The payload `t` of a turn: base64 if sealed; what is not sealed stays as readable on disk as it is."""
    return _seal(
        turn.id,
        {
            "e": turn.event_id,
            "i": turn.session_id,
            "r": turn.role,
            "n": turn.name,
            "c": turn.content,
            "u": _micros(turn.timestamp),
            "q": turn.seq,
        },
        sealer,
    )


def open_turn(memory_id: str, text: str, sealer: Sealer) -> Turn:
    """The turn of a payload `t`.

    Raises:
        SealBroken: It is another point's, another subject's, or damaged.
    """
    raw = _open(memory_id, text, sealer)
    return Turn(memory_id, raw["e"], raw["i"], raw["r"], raw["n"], raw["c"], _EPOCH + raw["u"] * _MICROSECOND, raw["q"])


def _seal_record(record: Record, sealer: Sealer) -> str:
    return _seal(
        record.id,
        {
            "v": record.version,
            "c": record.text,
            "y": record.type,
            "g": record.tags,
            "o": record.sources,
            "i": record.session_id,
            "m": _micros(record.created_at),
            "u": _micros(record.updated_at),
            "b": _micros(record.since),
            "e": None if record.until is None else _micros(record.until),
            "d": dict(record.data),
        },
        sealer,
    )


def open_record(memory_id: str, kind: str, text: str, history: str | None, sealer: Sealer) -> Record:
    """The record of a payload `t`, and its history if the payload `h` is given.

    Raises:
        SealBroken: It is another point's, another subject's, or damaged.
    """
    raw = _open(memory_id, text, sealer)
    return Record(
        id=memory_id,
        kind=kind,
        version=raw["v"],
        text=raw["c"],
        type=raw["y"],
        created_at=_EPOCH + raw["m"] * _MICROSECOND,
        updated_at=_EPOCH + raw["u"] * _MICROSECOND,
        since=_EPOCH + raw["b"] * _MICROSECOND,
        until=None if raw["e"] is None else _EPOCH + raw["e"] * _MICROSECOND,
        tags=tuple(raw["g"]),
        sources=tuple(raw["o"]),
        session_id=raw["i"],
        data=raw["d"],
        history=() if history is None else tuple(_open(_history(memory_id), history, sealer)),
    )


def pieces(points: Iterable[Point], most: int, size: int) -> Iterator[list[Mapping[str, Any]]]:
    """Points as requests carry them: at most `most` in a piece, and little more than `size` bytes."""
    piece: list[Mapping[str, Any]] = []
    held = 0
    for made in points:
        piece.append(
            {"id": made.id, "sparse": (made.indices, made.values), "dense": made.dense, "payload": made.payload}
        )
        held += len(made.payload["t"]) + len(made.payload.get("h", "")) + 14 * len(made.indices)
        held += sum(map(len, made.dense.values()))
        if len(piece) == most or held >= size:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


def _history(memory_id: str) -> str:
    return f"{memory_id}/history"  # a place of its own, so that neither opens as the other


def _micros(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND


def _seal(place: str, value: Any, sealer: Sealer) -> str:
    sealed = sealer.seal(place, orjson.dumps(value))
    # Base64 has neither brace nor bracket, and the format byte of what is sealed is none.
    return sealed.decode() if sealed[:1] in b"{[" else base64.b64encode(sealed).decode("ascii")


def _open(place: str, text: str, sealer: Sealer) -> Any:
    sealed = text.encode() if text[:1] in ("{", "[") else base64.b64decode(text)
    return orjson.loads(sealer.open(place, sealed))
