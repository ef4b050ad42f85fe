"""What chat and memory say to each other: a turn to keep, and a turn found again.

Two domain rooms never import each other; the values they exchange stand here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn to remember.

    Attributes:
        event_id: The idempotency id, 1..256 characters; None to have one made.
        session_id: The conversation, "" if none.
        role: `user`, `assistant` or `system`.
        content: The text, 1..100,000 characters, not blank.
        timestamp: When it was said, UTC; None for now.
        name: The speaker, "" if none.
    """

    event_id: str | None
    session_id: str
    role: str
    content: str
    timestamp: datetime | None
    name: str = ""


@dataclass(frozen=True, slots=True)
class RecalledItem:
    """A memory found for a question.

    Attributes:
        id: The memory's id.
        tier: Where it comes from: `short_term` or `episode`.
        role: Who said it: `user`, `assistant` or `system`.
        content: The text, verbatim.
        timestamp: When it was said, UTC.
        score: The relevance, 0..1.
    """

    id: str
    tier: str
    role: str
    content: str
    timestamp: datetime
    score: float
