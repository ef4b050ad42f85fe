"""Where one topic ends and the next begins: by silence, by words and by meaning.

After TextTiling (Hearst 1997): between any two turns, what is said shortly before is compared with what is said shortly
after; a valley between two hills of likeness is a boundary. Works on words alone, and better with vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from memoryos_server.domain.ports import Turn

WINDOW = 3
"""How many turns before and after a place are compared."""

MIN_TURNS, MAX_TURNS = 3, 16
"""A topic has so many turns at least, where silence does not cut it shorter, and at most."""

SHALLOWEST = 0.18
"""The depth below its hills from which a valley can be a boundary."""

SAME_TOPIC = 0.12
"""The likeness from which what follows a topic goes on with it."""


@dataclass(frozen=True, slots=True)
class Said:
    """A turn, with its terms and vectors."""

    turn: Turn
    terms: Mapping[str, float]
    dense: Mapping[str, Sequence[float]]


def pieces(said: Sequence[Said], gap: timedelta) -> list[list[Said]]:
    """Cuts a conversation where nobody spoke for longer than `gap`."""
    cut: list[list[Said]] = []
    for one in said:
        if cut and abs(one.turn.timestamp - cut[-1][-1].turn.timestamp) <= gap:
            cut[-1].append(one)
        else:
            cut.append([one])
    return cut


def topics(said: Sequence[Said]) -> list[list[Said]]:
    """Cuts a piece of conversation into topics, in order; every turn is in exactly one."""
    likeness = [alike(said[:at], said[at:]) for at in range(1, len(said))]
    places = _valleys(said, likeness)
    cut = [list(said[a:b]) for a, b in zip([0, *places], [*places, len(said)], strict=True)]
    return [part for topic in cut for part in _bounded(topic)]


def alike(before: Sequence[Said], after: Sequence[Said]) -> float:
    """How much what is said next is like what was said last, 0..1: by words and, where there are vectors, by meaning."""
    left, right = before[-WINDOW:], after[:WINDOW]
    words = _cosine(_summed([one.terms for one in left]), _summed([one.terms for one in right]))
    meaning = [
        value
        for name in {name for one in left for name in one.dense}
        if (value := _cosine_dense(_mean(left, name), _mean(right, name))) is not None
    ]
    return words if not meaning else 0.5 * words + 0.5 * max(0.0, max(meaning))


def _valleys(said: Sequence[Said], likeness: Sequence[float]) -> list[int]:
    depths: dict[int, float] = {}
    for i, here in enumerate(likeness):
        at = i + 1
        if at < MIN_TURNS or len(said) - at < MIN_TURNS or _answers(said[at - 1].turn, said[at].turn):
            continue
        depths[at] = _hill(likeness, i, -1) + _hill(likeness, i, 1) - 2 * here
    if not depths:
        return []
    mean = sum(depths.values()) / len(depths)
    spread = math.sqrt(sum((d - mean) ** 2 for d in depths.values()) / len(depths))
    least = max(SHALLOWEST, mean + spread / 2)
    chosen: list[int] = []
    for at in sorted(depths, key=lambda a: (-depths[a], a)):
        if depths[at] >= least and all(abs(at - other) >= MIN_TURNS for other in chosen):
            chosen.append(at)
    return sorted(chosen)


def _hill(likeness: Sequence[float], i: int, step: int) -> float:
    """The height of the hill beside a place: up as long as it goes up."""
    best = likeness[i]
    i += step
    while 0 <= i < len(likeness) and likeness[i] >= best:
        best = likeness[i]
        i += step
    return best


def _bounded(topic: list[Said]) -> list[list[Said]]:
    """Cuts what is too long where it hangs together least, away from its ends."""
    if len(topic) <= MAX_TURNS:
        return [topic]
    margin = max(MIN_TURNS, len(topic) // 4)
    at = min(
        range(margin, len(topic) - margin + 1),
        key=lambda a: (_answers(topic[a - 1].turn, topic[a].turn), alike(topic[:a], topic[a:]), a),
    )
    return _bounded(topic[:at]) + _bounded(topic[at:])


def _answers(before: Turn, after: Turn) -> bool:
    """Whether a turn is the assistant's answer to the one before."""
    return after.role == "assistant" and before.role == "user"


def _summed(all_terms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for terms in all_terms:
        for term, weight in terms.items():
            total[term] = total.get(term, 0.0) + weight
    return total


def _cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    dot = sum(weight * other[term] for term, weight in one.items() if term in other)
    if not dot:
        return 0.0
    return dot / math.sqrt(sum(w * w for w in one.values()) * sum(w * w for w in other.values()))


def _mean(said: Sequence[Said], name: str) -> list[float] | None:
    found = [one.dense[name] for one in said if name in one.dense]
    return [sum(column) for column in zip(*found, strict=True)] if found else None


def _cosine_dense(one: Sequence[float] | None, other: Sequence[float] | None) -> float | None:
    if one is None or other is None:
        return None
    norm = math.sqrt(sum(x * x for x in one) * sum(y * y for y in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / norm if norm else None
