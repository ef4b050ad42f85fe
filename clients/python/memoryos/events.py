"""What became of an event, for both clients."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from memoryos.model import short, when
from memoryos.v1 import memory_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a turn.

    Attributes:
        event_id: The id it was added under.
        memory_id: The id it is kept under.
        state: `accepted`, `stored`, `merged`, `rejected` or `dead_letter`.
        reason: Why, as a code, "" if there is nothing to say.
        related_memory_id: The memory it was merged into, "" if none.
        changed_at: When it came to this state, UTC; None if that is not known any more.
        attempts: How often work on it failed so far.
    """

    event_id: str
    memory_id: str
    state: str
    reason: str
    related_memory_id: str
    changed_at: datetime | None
    attempts: int


def became(message: pb.GetEventResponse) -> Event:
    """Event of its message."""
    return Event(
        event_id=message.event_id,
        memory_id=message.memory_id,
        state=short(pb.EventState, message.state),
        reason=message.reason,
        related_memory_id=message.related_memory_id,
        changed_at=when(message.changed_at) if message.HasField("changed_at") else None,
        attempts=message.attempts,
    )
