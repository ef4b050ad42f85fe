"""Segments as their owner sees them, and how they are kept as records.

A record's `history` holds older versions as JSON objects `{version, summary, tags, created_at, updated_at}`, newest first,
times as RFC 3339 text. An id that a user of another tenant has already cannot be a record's id, too: such a segment is kept
under an alias and shown under its own id, which `data` keeps.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from memoryos_server.domain.core.ids import SHOWN_ID
from memoryos_server.domain.ports import HeatState, Record

KIND = "segment"
TYPES = ("qa", "faq_candidate", "faq")


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a segment.

    Attributes:
        version: From 1.
        summary: The text.
        tags: In order.
        created_at: When the segment's first version was made.
        updated_at: When this one was made.
    """

    version: int
    summary: str
    tags: tuple[str, ...]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment with all that is kept of it.

    Attributes:
        id: As it is shown.
        version: From 1.
        summary: The text.
        tags: In order.
        type: One of `TYPES`.
        heat: Its heat; see who gives it as of when.
        access_count: How often it was found or injected.
        last_accessed: When last.
        created_at: When its first version was made.
        updated_at: When this version was made.
        since: From when it counts.
        until: From when it counts no longer, or None.
        source_ids: The turns it came from.
        session_id: The conversation it came from, "" if none or several.
        data: What else is kept with it: JSON values.
        history: Older versions, newest first; empty where they were not asked for.
    """

    id: str
    version: int
    summary: str
    tags: tuple[str, ...]
    type: str
    heat: float
    access_count: int
    last_accessed: datetime
    created_at: datetime
    updated_at: datetime
    since: datetime
    until: datetime | None = None
    source_ids: tuple[str, ...] = ()
    session_id: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Version, ...] = ()


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment to import; what is None gets a default. Fields as in `Segment`."""

    summary: str
    tags: tuple[str, ...] = ()
    type: str = "qa"
    id: str | None = None
    version: int | None = None
    heat: float | None = None
    access_count: int | None = None
    last_accessed: datetime | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    since: datetime | None = None
    until: datetime | None = None
    source_ids: tuple[str, ...] = ()
    session_id: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Version, ...] = ()


def shown_id(record: Record) -> str:
    """The id of a record's segment."""
    return str(record.data.get(SHOWN_ID) or record.id)


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID as it is written here: in lower case, with hyphens."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def segment_of(record: Record, heat: HeatState) -> Segment:
    """The segment of a record, its heat as of `last_accessed`."""
    return Segment(
        id=shown_id(record),
        version=record.version,
        summary=record.text,
        tags=record.tags,
        type=record.type if record.type in TYPES else TYPES[0],
        heat=heat.heat,
        access_count=heat.count,
        last_accessed=heat.last_accessed,
        created_at=record.created_at,
        updated_at=record.updated_at,
        since=record.since,
        until=record.until,
        source_ids=record.sources,
        session_id=record.session_id,
        data={key: value for key, value in record.data.items() if key != SHOWN_ID},
        history=versions_of(record),
    )


def versions_of(record: Record) -> tuple[Version, ...]:
    """The older versions of a record that was read with its history."""
    return tuple(_version(item, record) for item in record.history)


def _version(item: Mapping[str, Any], record: Record) -> Version:
    created = _time(item.get("created_at")) or record.created_at
    return Version(
        version=int(item.get("version", 1)),
        summary=str(item.get("summary", item.get("content", ""))),
        tags=tuple(str(tag) for tag in item.get("tags", ())),
        created_at=created,
        updated_at=_time(item.get("updated_at") or item.get("changed_at")) or created,
    )


def _time(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        return None
    found = datetime.fromisoformat(value)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def kept(versions: Sequence[Version]) -> tuple[Mapping[str, Any], ...]:
    """Versions as a record's history keeps them."""
    return tuple(
        {
            "version": version.version,
            "summary": version.summary,
            "tags": list(version.tags),
            "created_at": version.created_at.isoformat(),
            "updated_at": version.updated_at.isoformat(),
        }
        for version in versions
    )


def present(record: Record) -> Version:
    """The present version of a record."""
    return Version(record.version, record.text, record.tags, record.created_at, record.updated_at)


def older(record: Record) -> tuple[Mapping[str, Any], ...]:
    """The history of the version that follows a record: its present one before all that it has."""
    return (*kept([present(record)]), *record.history)
