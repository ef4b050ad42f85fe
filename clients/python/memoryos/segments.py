"""The segments of a user's mid-term memory, for both clients: tags, versions, export, import."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from memoryos.model import short, stamp, value, when
from memoryos.v1 import segment_service_pb2 as pb

if TYPE_CHECKING:
    from memoryos.aio import AsyncClient
    from memoryos.client import Client


@dataclass(frozen=True, slots=True)
class SegmentVersion:
    """One version of a segment; `version` counts from 1, `created_at` is when the segment's first version was made."""

    version: int
    summary: str
    tags: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    id: str = ""


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """All that is kept of a segment. Import needs only the summary; what is None gets a default.

    Attributes:
        summary: The text, 1..100,000 characters.
        tags: At most 64 of at most 64 characters.
        memory_type: `qa`, `faq_candidate` or `faq`.
        id: A UUID; an import under a known one is a new version.
        version: From 1.
        heat_score: Its heat as of `last_accessed`.
        access_count: How often it was found or injected.
        created_at: When its first version was made.
        updated_at: When this version was made.
        last_accessed: When it was last used.
        source_ids: The memory ids of the turns it came from.
        session_id: The conversation it came from, "" if none or several.
        since: From when it counts.
        until: From when it counts no longer, or None.
        data: What else is kept with it: JSON values.
        history: Older versions, newest first.
    """

    summary: str
    tags: tuple[str, ...] = ()
    memory_type: str = "qa"
    id: str | None = None
    version: int | None = None
    heat_score: float | None = None
    access_count: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    last_accessed: datetime | None = None
    source_ids: tuple[str, ...] = ()
    session_id: str = ""
    since: datetime | None = None
    until: datetime | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[SegmentVersion, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """A segment as tag search shows it; `heat_score` is its heat now."""

    id: str
    summary: str
    tags: tuple[str, ...]
    memory_type: str
    heat_score: float
    version: int


@dataclass(frozen=True, slots=True)
class TaggedSegment:
    """A segment's version and tags after a change of its tags."""

    version: int
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportedSegments:
    """What became of an import; `ids` are in the order of the request."""

    imported: int
    created: int
    updated: int
    unchanged: int
    ids: tuple[str, ...]


class Segments:
    """`Client.segments`. Every method takes `user_id` and `timeout` as the client's own do."""

    def __init__(self, client: Client) -> None:
        """Belongs to a client."""
        self._client = client

    def add_tags(
        self, segment_id: str, tags: Sequence[str], *, user_id: str | None = None, timeout: float | None = None
    ) -> TaggedSegment:
        """Adds those tags that a segment lacks, as a new version of it."""
        request = pb.AddTagsRequest(segment_id=segment_id, tags=tags)
        return _tagged(self._client.call("AddTags", request, user_id=user_id, timeout=timeout))

    def remove_tags(
        self, segment_id: str, tags: Sequence[str], *, user_id: str | None = None, timeout: float | None = None
    ) -> TaggedSegment:
        """Takes tags off a segment, as a new version of it."""
        request = pb.RemoveTagsRequest(segment_id=segment_id, tags=tags)
        return _tagged(self._client.call("RemoveTags", request, user_id=user_id, timeout=timeout))

    def search(
        self,
        tags: Sequence[str],
        *,
        limit: int | None = None,
        match_all: bool = False,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> list[FoundSegment]:
        """The segments with any, or all, of the tags, newest first."""
        request = _search(tags, limit, match_all)
        return _found(self._client.call("SearchTags", request, user_id=user_id, timeout=timeout))

    def versions(
        self, segment_id: str, *, user_id: str | None = None, timeout: float | None = None
    ) -> list[SegmentVersion]:
        """Every version of a segment, newest first."""
        request = pb.ListVersionsRequest(segment_id=segment_id)
        return _versions(self._client.call("ListVersions", request, user_id=user_id, timeout=timeout))

    def export(self, *, user_id: str | None = None, timeout: float | None = None) -> Iterator[StoredSegment]:
        """All segments, one after another, in the order of their ids; as many as there are."""
        for message in self._client.stream("ExportSegments", _export(""), user_id=user_id, timeout=timeout):
            yield from _stored(message)

    def export_markdown(self, *, user_id: str | None = None, timeout: float | None = None) -> Iterator[str]:
        """All segments as a Markdown document, in pieces."""
        for message in self._client.stream("ExportSegments", _export("markdown"), user_id=user_id, timeout=timeout):
            yield cast(pb.ExportSegmentsResponse, message).content

    def import_segments(
        self,
        segments: Iterable[StoredSegment | str],
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> ImportedSegments:
        """Adds 1..10,000 segments, or just their summaries, all or none."""
        return _imported(self._client.call("ImportSegments", _import(segments), user_id=user_id, timeout=timeout))


class AsyncSegments:
    """`AsyncClient.segments`; as `Segments`."""

    def __init__(self, client: AsyncClient) -> None:
        """Belongs to a client."""
        self._client = client

    async def add_tags(
        self, segment_id: str, tags: Sequence[str], *, user_id: str | None = None, timeout: float | None = None
    ) -> TaggedSegment:
        """Adds those tags that a segment lacks, as a new version of it."""
        request = pb.AddTagsRequest(segment_id=segment_id, tags=tags)
        return _tagged(await self._client.call("AddTags", request, user_id=user_id, timeout=timeout))

    async def remove_tags(
        self, segment_id: str, tags: Sequence[str], *, user_id: str | None = None, timeout: float | None = None
    ) -> TaggedSegment:
        """Takes tags off a segment, as a new version of it."""
        request = pb.RemoveTagsRequest(segment_id=segment_id, tags=tags)
        return _tagged(await self._client.call("RemoveTags", request, user_id=user_id, timeout=timeout))

    async def search(
        self,
        tags: Sequence[str],
        *,
        limit: int | None = None,
        match_all: bool = False,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> list[FoundSegment]:
        """The segments with any, or all, of the tags, newest first."""
        request = _search(tags, limit, match_all)
        return _found(await self._client.call("SearchTags", request, user_id=user_id, timeout=timeout))

    async def versions(
        self, segment_id: str, *, user_id: str | None = None, timeout: float | None = None
    ) -> list[SegmentVersion]:
        """Every version of a segment, newest first."""
        request = pb.ListVersionsRequest(segment_id=segment_id)
        return _versions(await self._client.call("ListVersions", request, user_id=user_id, timeout=timeout))

    async def export(self, *, user_id: str | None = None, timeout: float | None = None) -> AsyncIterator[StoredSegment]:
        """All segments, one after another, in the order of their ids; as many as there are."""
        async for message in self._client.stream("ExportSegments", _export(""), user_id=user_id, timeout=timeout):
            for segment in _stored(message):
                yield segment

    async def export_markdown(self, *, user_id: str | None = None, timeout: float | None = None) -> AsyncIterator[str]:
        """All segments as a Markdown document, in pieces."""
        request = _export("markdown")
        async for message in self._client.stream("ExportSegments", request, user_id=user_id, timeout=timeout):
            yield cast(pb.ExportSegmentsResponse, message).content

    async def import_segments(
        self,
        segments: Iterable[StoredSegment | str],
        *,
        user_id: str | None = None,
        timeout: float | None = None,
    ) -> ImportedSegments:
        """Adds 1..10,000 segments, or just their summaries, all or none."""
        return _imported(await self._client.call("ImportSegments", _import(segments), user_id=user_id, timeout=timeout))


def _search(tags: Sequence[str], limit: int | None, match_all: bool) -> pb.SearchTagsRequest:
    match = pb.TAG_MATCH_ALL if match_all else pb.TAG_MATCH_ANY
    return pb.SearchTagsRequest(tags=tags, limit=limit, match=match)


def _export(form: str) -> pb.ExportSegmentsRequest:
    formats = pb.ExportFormat
    return pb.ExportSegmentsRequest(format=formats.ValueType(value(formats, form, "format") if form else 0))


def _import(segments: Iterable[StoredSegment | str]) -> pb.ImportSegmentsRequest:
    given = (StoredSegment(segment) if isinstance(segment, str) else segment for segment in segments)
    return pb.ImportSegmentsRequest(segments=[_message(segment) for segment in given])


def _message(segment: StoredSegment) -> pb.StoredSegment:
    return pb.StoredSegment(
        id=segment.id,
        summary=segment.summary,
        tags=segment.tags,
        memory_type=pb.SegmentType.ValueType(value(pb.SegmentType, segment.memory_type, "memory_type")),
        heat_score=segment.heat_score,
        version=segment.version,
        access_count=segment.access_count,
        created_at=_moment(segment.created_at),
        updated_at=_moment(segment.updated_at),
        last_accessed=_moment(segment.last_accessed),
        source_ids=segment.source_ids,
        session_id=segment.session_id,
        history=[
            pb.SegmentVersion(
                id=version.id,
                version=version.version,
                summary=version.summary,
                tags=version.tags,
                created_at=stamp(version.created_at),
                updated_at=stamp(version.updated_at),
            )
            for version in segment.history
        ],
        since=_moment(segment.since),
        until=_moment(segment.until),
        data_json=json.dumps(segment.data, ensure_ascii=False) if segment.data else None,
    )


def _moment(moment: datetime | None) -> Timestamp | None:
    return None if moment is None else stamp(moment)


def _stored(message: Message) -> Iterator[StoredSegment]:
    for s in cast(pb.ExportSegmentsResponse, message).data.segments:
        yield StoredSegment(
            summary=s.summary,
            tags=tuple(s.tags),
            memory_type=short(pb.SegmentType, s.memory_type),
            id=s.id,
            version=s.version,
            heat_score=s.heat_score,
            access_count=s.access_count,
            created_at=when(s.created_at),
            updated_at=when(s.updated_at),
            last_accessed=when(s.last_accessed),
            source_ids=tuple(s.source_ids),
            session_id=s.session_id,
            since=when(s.since),
            until=when(s.until) if s.HasField("until") else None,
            data=json.loads(s.data_json) if s.HasField("data_json") else {},
            history=tuple(map(_version, s.history)),
        )


def _version(v: pb.SegmentVersion) -> SegmentVersion:
    return SegmentVersion(v.version, v.summary, tuple(v.tags), when(v.created_at), when(v.updated_at), v.id)


def _tagged(message: Message) -> TaggedSegment:
    response = cast(pb.AddTagsResponse, message)
    return TaggedSegment(response.version, tuple(response.tags))


def _found(message: Message) -> list[FoundSegment]:
    return [
        FoundSegment(s.id, s.summary, tuple(s.tags), short(pb.SegmentLabel, s.memory_type), s.heat_score, s.version)
        for s in cast(pb.SearchTagsResponse, message).segments
    ]


def _versions(message: Message) -> list[SegmentVersion]:
    return list(map(_version, cast(pb.ListVersionsResponse, message).history))


def _imported(message: Message) -> ImportedSegments:
    r = cast(pb.ImportSegmentsResponse, message)
    return ImportedSegments(r.imported, r.created, r.updated, r.unchanged, tuple(r.ids))
