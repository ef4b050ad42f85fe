"""SegmentService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from memoryos.v1 import segment_service_pb2 as pb
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.core.faults import Fault, Invalid
from memoryos_server.domain.core.text import MAX_TEXT
from memoryos_server.domain.manage import markdown
from memoryos_server.domain.manage.model import TYPES, NewSegment, Segment, Version
from memoryos_server.domain.manage.service import Export, SegmentService
from memoryos_server.rpc.convert import aware, optional, stamp
from memoryos_server.rpc.wrap import current_call

_Context = grpc.aio.ServicerContext[Any, Any]

_AT_ONCE = 100
"""Segments read before others get their turn."""


class SegmentServicer:
    """Serves memoryos.v1.SegmentService."""

    def __init__(self, segments: SegmentService) -> None:
        self._segments = segments

    async def AddTags(self, request: pb.AddTagsRequest, _context: _Context) -> pb.AddTagsResponse:
        """Adds the tags that a segment lacks."""
        done = await self._segments.add_tags(caller(), request.user_id, request.segment_id, request.tags)
        current_call().degraded |= done.degraded
        return pb.AddTagsResponse(version=done.version, tags=done.tags)

    async def RemoveTags(self, request: pb.RemoveTagsRequest, _context: _Context) -> pb.RemoveTagsResponse:
        """Takes tags off a segment."""
        done = await self._segments.remove_tags(caller(), request.user_id, request.segment_id, request.tags)
        current_call().degraded |= done.degraded
        return pb.RemoveTagsResponse(version=done.version, tags=done.tags)

    async def SearchTags(self, request: pb.SearchTagsRequest, _context: _Context) -> pb.SearchTagsResponse:
        """Lists segments by tags."""
        found = await self._segments.search(
            caller(),
            request.user_id,
            request.tags,
            limit=optional(request, "limit"),
            match_all=request.match == pb.TAG_MATCH_ALL,
        )
        current_call().degraded |= found.degraded
        return pb.SearchTagsResponse(
            count=len(found.segments),
            total=found.total,
            segments=[
                pb.FoundSegment(
                    id=segment.id,
                    summary=segment.summary,
                    tags=segment.tags,
                    memory_type=pb.SegmentLabel.ValueType(TYPES.index(segment.type) + 1),
                    heat_score=segment.heat,
                    version=segment.version,
                )
                for segment in found.segments
            ],
        )

    async def ExportSegments(
        self, request: pb.ExportSegmentsRequest, _context: _Context
    ) -> AsyncIterator[pb.ExportSegmentsResponse]:
        """Gives all segments, in pieces."""
        export = await self._segments.export(caller(), request.user_id)
        pieces = _markdown if request.format == pb.EXPORT_FORMAT_MARKDOWN else _json
        async for piece in pieces(export):
            yield piece

    async def ImportSegments(self, request: pb.ImportSegmentsRequest, _context: _Context) -> pb.ImportSegmentsResponse:
        """Adds segments, all or none."""
        segments = []
        for index, segment in enumerate(request.segments):
            if index % _AT_ONCE == 0:
                await asyncio.sleep(0)
            segments.append(_new(segment, f"segments[{index}]"))
        done = await self._segments.import_segments(caller(), request.user_id, segments)
        current_call().degraded |= done.degraded
        return pb.ImportSegmentsResponse(
            imported=len(done.ids),
            created=done.created,
            updated=done.updated,
            unchanged=done.unchanged,
            ids=done.ids,
        )

    async def ListVersions(self, request: pb.ListVersionsRequest, _context: _Context) -> pb.ListVersionsResponse:
        """Lists the versions of a segment."""
        versions = await self._segments.versions(caller(), request.user_id, request.segment_id)
        return pb.ListVersionsResponse(
            segment_id=request.segment_id,
            version_count=len(versions),
            history=[_version(version, request.segment_id) for version in versions],
        )


async def _json(export: Export) -> AsyncIterator[pb.ExportSegmentsResponse]:
    head = pb.SegmentExport(user_id=export.user_id, exported_at=stamp(export.exported_at), segment_count=export.count)
    yield pb.ExportSegmentsResponse(format=pb.EXPORT_FORMAT_JSON, data=head)
    async for piece in export.pieces:
        yield pb.ExportSegmentsResponse(data=pb.SegmentExport(segments=[_stored(segment) for segment in piece]))


async def _markdown(export: Export) -> AsyncIterator[pb.ExportSegmentsResponse]:
    head = markdown.head(export.user_id, export.exported_at, export.count)
    yield pb.ExportSegmentsResponse(format=pb.EXPORT_FORMAT_MARKDOWN, content=head)
    async for piece in export.pieces:
        yield pb.ExportSegmentsResponse(content="".join(map(markdown.section, piece)))


def _stored(segment: Segment) -> pb.StoredSegment:
    return pb.StoredSegment(
        id=segment.id,
        summary=segment.summary,
        tags=segment.tags,
        memory_type=pb.SegmentType.ValueType(TYPES.index(segment.type) + 1),
        heat_score=segment.heat,
        version=segment.version,
        access_count=segment.access_count,
        created_at=stamp(segment.created_at),
        updated_at=stamp(segment.updated_at),
        last_accessed=stamp(segment.last_accessed),
        source_ids=segment.source_ids,
        session_id=segment.session_id,
        history=[_version(version, segment.id) for version in segment.history],
        since=stamp(segment.since),
        until=None if segment.until is None else stamp(segment.until),
        data_json=json.dumps(segment.data, ensure_ascii=False, sort_keys=True) if segment.data else None,
    )


def _version(version: Version, segment_id: str) -> pb.SegmentVersion:
    return pb.SegmentVersion(
        id=segment_id,
        version=version.version,
        summary=version.summary,
        tags=version.tags,
        created_at=stamp(version.created_at),
        updated_at=stamp(version.updated_at),
    )


def _new(segment: pb.StoredSegment, at: str) -> NewSegment:
    try:
        created = aware(segment, "created_at")
        updated = aware(segment, "updated_at")
        accessed = aware(segment, "last_accessed")
        since = aware(segment, "since")
        until = aware(segment, "until")
        data = _data(segment)
    except Fault as fault:
        raise Invalid(f"{at}.{fault.message}", param=f"{at}.{fault.param}") from None
    history = []
    for index, version in enumerate(segment.history):
        try:
            made = aware(version, "created_at") or created
            changed = aware(version, "updated_at") or made
        except Fault as fault:
            raise Invalid(
                f"{at}.history[{index}].{fault.message}", param=f"{at}.history[{index}].{fault.param}"
            ) from None
        if made is None or changed is None:
            field = f"{at}.history[{index}].created_at"
            raise Invalid(f"{field} is required where the segment has no created_at", param=field)
        history.append(Version(version.version, version.summary, tuple(version.tags), made, changed))
    return NewSegment(
        summary=segment.summary,
        tags=tuple(dict.fromkeys(segment.tags)),
        type=TYPES[max(segment.memory_type - 1, 0)],
        id=optional(segment, "id"),
        version=optional(segment, "version"),
        heat=optional(segment, "heat_score"),
        access_count=optional(segment, "access_count"),
        last_accessed=accessed,
        created_at=created,
        updated_at=updated,
        since=since,
        until=until,
        source_ids=tuple(segment.source_ids),
        session_id=segment.session_id,
        data=data,
        history=tuple(history),
    )


def _data(segment: pb.StoredSegment) -> Mapping[str, Any]:
    text = optional(segment, "data_json") or "{}"
    if len(text) > MAX_TEXT:
        raise Invalid(f"data must have at most {MAX_TEXT:,} characters", param="data_json")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise Invalid("data must be a JSON object", param="data_json")
    return data
