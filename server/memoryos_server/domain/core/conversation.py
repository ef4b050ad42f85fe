"""What other rooms hand to memory: a turn to keep.

Two domain rooms never import each other; the values they exchange stand here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn to remember.

    Attributes:
        role: `user`, `assistant` or `system`.
        content: The text, 1..100,000 characters, not blank.
        event_id: The idempotency id, 1..256 characters; None: one is made.
        session_id: The conversation, "" if none.
        name: The speaker, "" if none.
        timestamp: When it was said, UTC; None: now.
    """

    role: str
    content: str
    event_id: str | None = None
    session_id: str = ""
    name: str = ""
    timestamp: datetime | None = None
