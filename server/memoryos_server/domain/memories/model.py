"""A typed memory, and the record that the stores know it as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.ports import Record

KIND = "memory"
"""The kind of the records."""

RULE, FACT, CONTEXT = TYPES = ("rule", "fact", "context")

DEFAULT_IMPORTANCE = 0.5


@dataclass(frozen=True, slots=True)
class TypedMemory:
    """A memory that somebody wrote down, or that was extracted.

    Attributes:
        id: A UUID.
        content: The text.
        memory_type: `rule`, `fact` or `context`.
        importance: 0..1; the higher, the sooner it is injected.
        created_at: When it was first known.
        updated_at: When this version was made.
        version: From 1.
    """

    id: str
    content: str
    memory_type: str
    importance: float
    created_at: datetime
    updated_at: datetime
    version: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """A memory that a search found; `score` is 0..1."""

    memory: TypedMemory
    score: float


@dataclass(frozen=True, slots=True)
class Kept:
    """A memory as it is kept.

    Attributes:
        memory: The memory.
        degraded: It is durable but waits to become searchable.
        duplicate: It was kept before, under the same event; nothing was written.
    """

    memory: TypedMemory
    degraded: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list.

    Attributes:
        memories: Newest first.
        total: How many there are on all pages.
        page: Which page, from 1.
        page_size: The size of pages.
        degraded: Something may be missing.
    """

    memories: Sequence[TypedMemory]
    total: int
    page: int
    page_size: int
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """What a search found, best first; degraded: something may be missing."""

    found: Sequence[Found]
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A memory for a chat.

    Attributes:
        id: The memory's id.
        memory_type: `rule`, `fact` or `context`.
        content: The text.
        importance: 0..1.
        score: The relevance, 0..1; a rule may have none.
        at: When it came to say this, UTC.
    """

    id: str
    memory_type: str
    content: str
    importance: float
    score: float
    at: datetime


@dataclass(frozen=True, slots=True)
class Noted:
    """The memories for a chat.

    Attributes:
        notes: Every rule, and what is relevant of the others; in no order.
        degraded: Something may be missing.
        touch: Counts accesses by their ids.
    """

    notes: Sequence[Note] = ()
    degraded: bool = False
    touch: Callable[[Sequence[str]], None] | None = None

    def used(self, ids: Sequence[str]) -> None:
        """Notes that these were injected, which counts as an access."""
        if self.touch is not None:
            self.touch(ids)


@dataclass(frozen=True, slots=True)
class Extracted:
    """What an extraction kept.

    Attributes:
        memories: Those made, in the order of the text.
        skipped: How many were found and left out as duplicates.
        degraded: They are durable but wait to become searchable.
    """

    memories: Sequence[TypedMemory]
    skipped: int
    degraded: bool = False


class Suggested(Protocol):
    """A memory that a text suggests."""

    @property
    def content(self) -> str:
        """The text of the memory."""

    @property
    def memory_type(self) -> str:
        """`rule`, `fact` or `context`."""

    @property
    def importance(self) -> float:
        """0..1."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A memory that a text suggests, checked."""

    content: str
    memory_type: str
    importance: float


def new_record(memory_id: str, content: str, memory_type: str, importance: float, now: datetime) -> Record:
    """The record of a memory's first version."""
    return Record(
        id=memory_id,
        kind=KIND,
        version=1,
        text=content,
        type=memory_type,
        created_at=now,
        updated_at=now,
        since=now,
        data={"importance": importance},
    )


def changed(record: Record, content: str, importance: float, now: datetime) -> Record:
    """The record as a new version; the one before it goes to the head of the history."""
    before = {
        "version": record.version,
        "content": record.text,
        "importance": memory_of(record).importance,
        "changed_at": record.updated_at.isoformat(),
    }
    return replace(
        record,
        version=record.version + 1,
        text=content,
        updated_at=now,
        data={**record.data, "importance": importance},
        history=(before, *record.history),
    )


def first_content(record: Record) -> str:
    """The text of the first version; the record must have its history."""
    return str(record.history[-1]["content"]) if record.history else record.text


def memory_of(record: Record) -> TypedMemory:
    """The memory of a record."""
    return TypedMemory(
        id=record.id,
        content=record.text,
        memory_type=record.type,
        importance=float(record.data.get("importance", DEFAULT_IMPORTANCE)),
        created_at=record.created_at,
        updated_at=record.updated_at,
        version=record.version,
    )


def check_type(value: str, param: str = "memory_type") -> str:
    """Gives the type back.

    Raises:
        Invalid: There is no such type.
    """
    if value not in TYPES:
        raise Invalid(f"{param} must be one of {', '.join(TYPES)}", param=param)
    return value


def check_share(value: float, param: str) -> float:
    """Gives the number back.

    Raises:
        Invalid: It is not 0..1.
    """
    if not 0 <= value <= 1:  # nor is NaN
        raise Invalid(f"{param} must be 0..1", param=param)
    return value
