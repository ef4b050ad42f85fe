"""What the stages of the memory pipeline hand to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.ports import Subject, Turn


@dataclass(frozen=True, slots=True)
class Verdict:
    """What digesting a turn came to: its end state.

    Attributes:
        state: `stored`, `merged` or `rejected`.
        reason: A code such as `greeting`, `echo`, `duplicate`; "" for stored.
        related: The memory it was merged into, or "".
        fresh: Whether it waits to be part of a segment; never for junk.
    """

    state: str = "stored"
    reason: str = ""
    related: str = ""
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class Consolidated:
    """What a consolidation did.

    Attributes:
        memory_ids: The turns that are in segments now; they leave the fresh list once that is durable.
        next_due: When the rest is due, or None if nothing is left.
    """

    memory_ids: Sequence[str]
    next_due: datetime | None = None


class Digest(Protocol):
    """Judges turns and takes from them what can be known; repeated after a crash, it changes nothing."""

    async def digest(self, subject: Subject, turns: Sequence[Turn]) -> list[Verdict]:
        """The verdicts, in order. The turns are searchable already. Facts are written to the searchable side when this returns."""


class Consolidation(Protocol):
    """Makes segments of fresh turns; repeated after a crash, it changes nothing."""

    async def consolidate(self, subject: Subject, memory_ids: Sequence[str], now: datetime) -> Consolidated:
        """Writes segments of those turns that belong to a topic that is over, or of all if the conversation is idle."""
