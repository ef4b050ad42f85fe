"""What is kept, and whose it is, as the stores know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Subject:
    """A (tenant, user) as the stores know it.

    Attributes:
        id: 32 hex digits, random; the first two are the partition.
        tenant_id: The tenant.
        user_id: The user.
        epoch: Raised by an erasure; work of an older epoch is dropped.
    """

    id: str
    tenant_id: str
    user_id: str
    epoch: int

    @property
    def partition(self) -> int:
        """The partition, 0..255."""
        return int(self.id[:2], 16)


@dataclass(frozen=True, slots=True)
class Turn:
    """What somebody said, verbatim and immutable: an episode of memory.

    Attributes:
        id: The memory id: a UUID that follows from (tenant, subject, event_id).
        event_id: The idempotency id.
        session_id: The conversation, "" if none.
        role: `user`, `assistant` or `system`.
        name: The speaker, "" if none.
        content: The text.
        timestamp: When it was said, UTC.
        seq: Its place in the order of acceptance among the subject's turns, from 1; 0 before it is accepted.
    """

    id: str
    event_id: str
    session_id: str
    role: str
    name: str
    content: str
    timestamp: datetime
    seq: int = 0


KINDS = ("segment", "fact", "denial", "memory")
"""The kinds of records."""


@dataclass(frozen=True, slots=True)
class Record:
    """A memory that is derived from episodes, or that somebody wrote down: segment, fact, typed memory.

    The stores know this form of it only; its domain room has another. Equal filters find it by kind, type, tag, session and source.

    Attributes:
        id: A UUID.
        kind: One of `KINDS`.
        version: From 1; a put with a lower one than is stored changes nothing.
        text: What search goes by.
        type: The label within its kind: a segment's `qa`, `faq_candidate`, `faq`; a memory's `rule`, `fact`, `context`; a fact's predicate.
        tags: Labels, in order.
        sources: Memory ids of the episodes it came from.
        session_id: The conversation it came from, "" if none or several.
        created_at: When its first version was made.
        updated_at: When this version was made.
        since: From when it was believed; a search as of an earlier time does not find it.
        until: From when it was no longer believed, or None; a search as of a later time, or of now, does not find it.
        data: What else its kind keeps: JSON values.
        history: Older versions as their kind keeps them (JSON objects), newest first. Reads leave it out unless asked for it.
    """

    id: str
    kind: str
    version: int
    text: str
    type: str
    created_at: datetime
    updated_at: datetime
    since: datetime
    until: datetime | None = None
    tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    session_id: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class HeatState:
    """How warm a record is.

    Attributes:
        heat: Its heat at `last_accessed`; it decays from there (`domain/memory/heat`).
        count: How often it was returned or injected.
        last_accessed: When last; its creation counts as the first time.
    """

    heat: float
    count: int
    last_accessed: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """A change of memory that somebody asked for: accepted first, then applied to the searchable side, again after a crash.

    Attributes:
        put: Records as they shall be, history included.
        remove: Ids of records and episodes to remove, with what short-term memory and the ledger hold of them.
        heat: Record id -> heat to set (imports bring theirs).
        embed: Whether records are findable by meaning when the change is applied; else words only, and meaning follows.
        events: Of each episode in `remove`: memory id -> (event_id, session_id), by which the ledger knows it.
        made_once: Id of a record in `put` that is not put if it was removed before, "" for none: a delivery that is
            repeated must not undo a deletion.
    """

    put: tuple[Record, ...] = ()
    remove: tuple[str, ...] = ()
    heat: Mapping[str, HeatState] = field(default_factory=dict)
    embed: bool = True
    events: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    made_once: str = ""

    @property
    def adds(self) -> bool:
        """Whether it keeps something and removes nothing."""
        return bool(self.put and not self.remove)


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation as it is listed.

    Attributes:
        id: The session id; "" for turns without one.
        turns: How many turns it has.
        first_at: When the earliest of them was said.
        last_at: When the latest of them was said.
    """

    id: str
    turns: int
    first_at: datetime
    last_at: datetime


class People(Protocol):
    """The users of a tenant that the stores know."""

    async def find(self, tenant_id: str, user_id: str) -> Subject | None:
        """The subject, or None if the user was never heard of. Cached, bounded."""

    async def users(self, tenant_id: str, after: str, most: int) -> tuple[list[Subject], str]:
        """Subjects of a tenant in the order of their ids.

        What is looked at is bounded, so that fewer than `most`, even none, may come although there are more.

        Args:
            tenant_id: The tenant.
            after: The token to go on with; "" from the first.
            most: The most subjects wanted.

        Returns:
            The subjects, and the token to go on with, in which nobody reads where the call ended; "" at the end.

        Raises:
            Invalid: `after` was given out for no page of this tenant's (`page_token`).
            BackendDown: The store does not answer.
        """


class Subjects(Protocol):
    """Who the stores know."""

    async def find(self, tenant_id: str, user_id: str) -> Subject | None:
        """The subject, or None if the user was never heard of. Cached, bounded."""

    async def open(self, tenant_id: str, user_id: str) -> Subject:
        """The subject, made if need be. Its key is durable before this returns; concurrent calls give one subject."""

    async def by_id(self, subject_id: str) -> Subject | None:
        """The subject of an id, or None."""
