"""Which memories went into a chat, kept for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from memoryos_server.domain.ports.memories import Subject


@dataclass(frozen=True, slots=True)
class ReceiptItem:
    """One memory that went into a chat; what it says is not kept.

    Attributes:
        id: The memory's id.
        tier: Where it came from.
        score: Its relevance, 0..1.
        tokens: What it cost in the request, estimated.
        importance: 0..1; a memory that is no rule goes in by importance x score.
        outdated: It says what is no longer believed.
        cut: Only its beginning went in.
        parts: Name -> addend of the raw score, as far as the score is a sum.
    """

    id: str
    tier: str
    score: float
    tokens: int
    importance: float = 0.5
    outdated: bool = False
    cut: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What memory did for a chat.

    Attributes:
        id: A UUIDv7, which says when.
        model: The model that was asked for.
        source: What answered: `upstream` or `recall`.
        provider: The name of the provider that answered, "" for the built-in model.
        event_id: The id under which the turn is remembered if it comes to its end, "" if it is not to be.
        tokens: What all memories cost together with the frame around them, estimated.
        budget: What they may have cost at most; 0 for the built-in model, which has no such bound.
        degraded: Memory, or a part of it, did not answer.
        items: What went in, in order.
    """

    id: str
    model: str
    source: str
    provider: str
    event_id: str
    tokens: int
    budget: int
    degraded: bool
    items: tuple[ReceiptItem, ...]


class ReceiptStore(Protocol):
    """Receipts, sealed for their user, gone by themselves after some days and with an erasure of the user."""

    async def keep(self, subject: Subject, receipts: Sequence[Receipt]) -> None:
        """Keeps receipts; again does no harm. Of a user's day only so many are kept.

        Raises:
            Stale: The subject's epoch is over.
        """

    async def find(self, subject: Subject, receipt_id: str) -> Receipt | None:
        """The receipt, or None if the subject has no such one.

        Raises:
            Stale: The subject's epoch is over.
        """
