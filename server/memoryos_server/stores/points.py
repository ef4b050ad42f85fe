"""How a turn becomes a point of the vector store and back: the same for every engine.

A point's payload is `t`, the sealed turn; `s`, the subject; `ts`, when it was said in Unix seconds; `n`, the keyed
hash of its session, "" if none. Must not know of engines.
"""

from __future__ import annotations

import array
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from memoryos_server.domain.ports import IndexedTurn, Subject, Turn
from memoryos_server.stores.scope import Scope
from memoryos_server.stores.sealing import Sealer

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Point:
    """A turn as an engine keeps it.

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
    payload: Mapping[str, str | float]


def point(subject: Subject, turn: IndexedTurn, sealer: Sealer) -> Point:
    """The point of a turn."""
    indices, values = sparse(turn.terms, sealer)
    scope = Scope(subject, sealer)
    said = turn.turn
    payload: dict[str, str | float] = {
        **scope.filter(session_id=said.session_id),
        "ts": said.timestamp.timestamp(),
        "t": seal_turn(said, sealer),
    }
    return Point(said.id, indices, values, {name: dense(vector) for name, vector in turn.dense.items()}, payload)


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
    sealed = sealer.seal(
        turn.id,
        orjson.dumps(
            {
                "e": turn.event_id,
                "i": turn.session_id,
                "r": turn.role,
                "n": turn.name,
                "c": turn.content,
                "u": (turn.timestamp - _EPOCH) // _MICROSECOND,
            }
        ),
    )
    # Base64 never has a brace, and the format byte of what is sealed is none.
    return sealed.decode() if sealed.startswith(b"{") else base64.b64encode(sealed).decode("ascii")


def open_turn(memory_id: str, text: str, sealer: Sealer) -> Turn:
    """The turn of a payload `t`.

    Raises:
        SealBroken: It is another point's, another subject's, or damaged.
    """
    sealed = text.encode() if text.startswith("{") else base64.b64decode(text)
    raw: dict[str, Any] = orjson.loads(sealer.open(memory_id, sealed))
    return Turn(
        id=memory_id,
        event_id=raw["e"],
        session_id=raw["i"],
        role=raw["r"],
        name=raw["n"],
        content=raw["c"],
        timestamp=_EPOCH + raw["u"] * _MICROSECOND,
    )
