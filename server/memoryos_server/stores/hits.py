"""What a search among records found, for every engine."""

from __future__ import annotations

from collections.abc import Mapping

from memoryos_server.stores.frames import LEXICAL


def likeliest(found: Mapping[str, Mapping[str, float]], most: int | None) -> Mapping[str, Mapping[str, float]]:
    """The best of what a search among records found, as `RecordQuery.most` has it.

    Args:
        found: Id -> leg -> score.
        most: How many; None: all.
    """
    if most is None or most >= len(found):
        return found
    best = max(scores.get(LEXICAL, 0.0) for scores in found.values()) or 1.0

    def closeness(memory_id: str) -> float:
        scores = found[memory_id]
        return scores.get(LEXICAL, 0.0) / best + max((s for leg, s in scores.items() if leg != LEXICAL), default=0.0)

    return {memory_id: found[memory_id] for memory_id in sorted(found, key=closeness, reverse=True)[:most]}
