"""Of two turns that contradict each other, the one that is still believed comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from memoryos_server.domain.ports import Turn

INSTEAD = "instead"
"""The part of a score that lifts a turn to the place of one that it outdates."""


class Ranked(Protocol):
    """A found turn, as the recall engine gives it."""

    @property
    def turn(self) -> Turn:
        """The turn."""

    @property
    def score(self) -> float:
        """The relevance, 0..1."""

    @property
    def parts(self) -> Mapping[str, float]:
        """Name -> addend of `raw`; only when explained."""

    @property
    def raw(self) -> float:
        """The score before calibration; only when explained."""


@dataclass(frozen=True, slots=True)
class _Lifted:
    turn: Turn
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    raw: float = 0.0


def instead_of(ranked: Sequence[Ranked], outdated: Mapping[str, Sequence[str]]) -> list[str]:
    """Ids of the turns that say what is believed instead of found ones, where none of those was found itself."""
    found = {hit.turn.id for hit in ranked}
    return list(dict.fromkeys(outdated[one][0] for one in found if one in outdated and found.isdisjoint(outdated[one])))


def current_first(
    ranked: Sequence[Ranked], outdated: Mapping[str, Sequence[str]], more: Sequence[Turn] = ()
) -> Sequence[Ranked]:
    """The turns with each that outdates a better one lifted to right before it; no other order changes.

    Args:
        ranked: Best first.
        outdated: A turn's id -> ids of the turns that say what is believed instead.
        more: Turns that were not found themselves, to be put before those they outdate.
    """
    if not any(hit.turn.id in outdated for hit in ranked):
        return ranked
    order: list[Ranked] = [*ranked, *(_Lifted(turn, 0.0) for turn in more)]
    at = 0
    while at < len(order):
        old = order[at]
        instead = outdated.get(old.turn.id, ())
        later = next((i for i in range(at + 1, len(order)) if order[i].turn.id in instead), None)
        if later is not None:
            new = order.pop(later)
            parts = {**new.parts, INSTEAD: old.raw - new.raw} if old.parts else new.parts
            order.insert(at, _Lifted(new.turn, old.score, parts, old.raw))
            at += 1
        at += 1
    return order
