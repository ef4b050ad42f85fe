"""What readers give: turns, memories, and what could not be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

MAX_TEXT = 100_000
"""The longest content that the server takes, in characters."""

MAX_ID = 256
_MILLISECONDS = 1e11  # a number of seconds beyond the year 5138 is meant as milliseconds


@dataclass(frozen=True, slots=True)
class Turn:
    """Something that was said.

    Attributes:
        where: Its place in the file, for people.
        content: The text.
        role: `user`, `assistant` or `system`.
        event_id: Follows from the source.
        session_id: The conversation, "" if none.
        name: The speaker, "" if not known.
        timestamp: When it was said, or None if not known.
        user_id: Whose it is by the file, "" if it does not say.
    """

    where: str
    content: str
    role: str
    event_id: str
    session_id: str = ""
    name: str = ""
    timestamp: datetime | None = None
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """Something that another system took down as worth remembering, when it did, or None; other fields as in `Turn`."""

    where: str
    content: str
    event_id: str
    user_id: str = ""
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be imported, and why."""

    where: str
    message: str


Item = Turn | Memory | Problem


class Unreadable(ValueError):
    """A file cannot be read on; what came before counts."""


def moment(value: Any) -> datetime | None:
    """The time of RFC 3339 text or of Unix seconds or milliseconds; text without a zone is UTC.

    Raises:
        ValueError: It is no time.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000 if abs(value) > _MILLISECONDS else value, UTC)
        if isinstance(value, str):
            found = datetime.fromisoformat(value.strip())
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise ValueError(f"{str(value)[:40]!r} is no time")


def short(text: str) -> str:
    """The id itself, or one that follows from it where it is longer than the server takes."""
    if len(text) <= MAX_ID:
        return text
    return "h-" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def parts(turn: Turn) -> Iterator[Turn]:
    """The turn, in several pieces if it is longer than the server takes; cut between words where it can be."""
    text, number = turn.content, 1
    while True:
        end = len(text)
        if end > MAX_TEXT:
            end = (
                max(text.rfind(" ", MAX_TEXT // 2, MAX_TEXT), text.rfind("\n", MAX_TEXT // 2, MAX_TEXT)) + 1 or MAX_TEXT
            )
        piece, text = text[:end], text[end:]
        if piece.strip():
            yield replace(
                turn, content=piece, event_id=turn.event_id if number == 1 else short(f"{turn.event_id}#{number}")
            )
        number += 1
        if not text:
            return
