"""SegmentService over gRPC with keys: permissions, whose data, streams, errors, what is recorded."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from memoryos.v1 import segment_service_pb2 as pb
from memoryos.v1.segment_service_pb2_grpc import SegmentServiceStub
from tests.system import System

ADMIN = "an-admin-key-of-a-test"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    env = {"MEMORYOS_AUTH__ENABLED": "true", "MEMORYOS_AUTH__ADMIN_KEY": ADMIN}
    system = System(tmp_path_factory.mktemp("segments"), env)
    try:
        system.start(bridge=False)
        yield system
        system.stop()
    finally:
        system.kill(group=True)


@pytest.fixture(scope="module")
def stub(system: System) -> Iterator[SegmentServiceStub]:
    with grpc.insecure_channel(system.grpc) as channel:
        yield SegmentServiceStub(channel)


@pytest.fixture(scope="module")
def keys(system: System) -> dict[str, str]:
    made = {}
    for name, user, permissions in (
        ("ann", "ann", "memory"),
        ("reader", "ann", "memory.read"),
        ("ben", "ben", "memory"),
        ("chat", "ann", "chat"),
        ("agent", "bot", "memory,act_as"),
    ):
        done = system.cli("keys", "create", "--user", user, "--permissions", permissions, "--json")
        made[name] = json.loads(done.stdout)["api_key"]
    return made


def bearer(key: str, **more: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"), *((name.replace("_", "-"), value) for name, value in more.items()))


def failure(call: Any, *arguments: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    """The code of a failed call and the field at fault, or the reason."""
    with pytest.raises(grpc.RpcError) as raised:
        list(answer) if hasattr(answer := call(*arguments, **options), "__iter__") else answer
    status = rpc_status.from_call(raised.value)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    assert info.domain == "memoryos"
    return raised.value.code(), bad.field_violations[0].field if bad.field_violations else info.reason


def bring(stub: SegmentServiceStub, key: str, *summaries: str, user: str = "", **more: str) -> list[str]:
    segments = [pb.StoredSegment(summary=summary, tags=["t"]) for summary in summaries]
    answer = stub.ImportSegments(
        pb.ImportSegmentsRequest(user_id=user, segments=segments), metadata=bearer(key, **more)
    )
    assert (answer.imported, answer.created) == (len(summaries), len(summaries))
    return list(answer.ids)


def exported(stub: SegmentServiceStub, key: str, **more: Any) -> list[pb.ExportSegmentsResponse]:
    return list(stub.ExportSegments(pb.ExportSegmentsRequest(**more), metadata=bearer(key)))


def test_export_when_streamed_then_the_head_comes_first_and_pieces_follow(
    stub: SegmentServiceStub, keys: dict[str, str]
) -> None:
    bring(stub, keys["agent"], *(f"segment {n}" for n in range(350)), user="carl")
    pieces = exported(stub, keys["agent"], user_id="carl")
    head = pieces[0]
    assert (head.format, head.data.user_id, head.data.segment_count) == (pb.EXPORT_FORMAT_JSON, "carl", 350)
    assert len(pieces) > 2
    assert all(not piece.data.HasField("exported_at") for piece in pieces[1:])
    found = [segment for piece in pieces for segment in piece.data.segments]
    assert [segment.summary for segment in found] == [f"segment {n}" for n in range(350)]
    assert all(s.memory_type == pb.SEGMENT_TYPE_QA and s.version == 1 and s.heat_score == 1.0 for s in found)
    texts = exported(stub, keys["agent"], user_id="carl", format=pb.EXPORT_FORMAT_MARKDOWN)
    assert texts[0].format == pb.EXPORT_FORMAT_MARKDOWN
    assert all(piece.HasField("content") and not piece.HasField("data") for piece in texts)
    assert "".join(piece.content for piece in texts).count("> segment ") == 350


def test_calls_when_the_key_may_not_then_denied(stub: SegmentServiceStub, keys: dict[str, str]) -> None:
    (segment,) = bring(stub, keys["ann"], "Ann's own")
    tags = pb.AddTagsRequest(segment_id=segment, tags=["x"])
    writes = ((stub.AddTags, tags), (stub.RemoveTags, pb.RemoveTagsRequest(segment_id=segment, tags=["t"])))
    denied = grpc.StatusCode.PERMISSION_DENIED
    for call, request in writes:
        assert failure(call, request, metadata=bearer(keys["reader"]))[0] == denied
    search = pb.SearchTagsRequest(tags=["t"])
    assert [s.id for s in stub.SearchTags(search, metadata=bearer(keys["reader"])).segments] == [segment]
    assert failure(stub.SearchTags, search, metadata=bearer(keys["chat"]))[0] == denied
    assert failure(stub.SearchTags, search)[0] == grpc.StatusCode.UNAUTHENTICATED
    assert failure(stub.ExportSegments, pb.ExportSegmentsRequest(), metadata=bearer(keys["chat"]))[0] == denied
    named = pb.SearchTagsRequest(tags=["t"], user_id="ann")
    assert failure(stub.SearchTags, named, metadata=bearer(keys["ben"]))[0] == denied
    assert stub.SearchTags(named, metadata=bearer(keys["agent"])).count == 1


def test_segment_when_anothers_then_not_found(stub: SegmentServiceStub, keys: dict[str, str]) -> None:
    (segment,) = bring(stub, keys["ann"], "Ann's own, too")
    for name in (segment, str(uuid.uuid4()), "no-uuid"):
        for call, request in (
            (stub.AddTags, pb.AddTagsRequest(segment_id=name, tags=["x"])),
            (stub.RemoveTags, pb.RemoveTagsRequest(segment_id=name, tags=["t"])),
            (stub.ListVersions, pb.ListVersionsRequest(segment_id=name)),
        ):
            assert failure(call, request, metadata=bearer(keys["ben"]))[0] == grpc.StatusCode.NOT_FOUND
    versions = stub.ListVersions(pb.ListVersionsRequest(segment_id=segment), metadata=bearer(keys["ann"]))
    assert (versions.version_count, versions.history[0].tags) == (1, ["t"])


@pytest.mark.parametrize(
    ("name", "request_", "field"),
    [
        ("AddTags", pb.AddTagsRequest(tags=["x"]), "segment_id"),
        ("AddTags", pb.AddTagsRequest(segment_id="s"), "tags"),
        ("RemoveTags", pb.RemoveTagsRequest(segment_id="s", tags=[" "]), "tags"),
        ("SearchTags", pb.SearchTagsRequest(), "tags"),
        ("SearchTags", pb.SearchTagsRequest(tags=["x"], limit=0), "limit"),
        ("SearchTags", pb.SearchTagsRequest(tags=["x"], match=9), "match"),  # type: ignore[arg-type]
        ("ExportSegments", pb.ExportSegmentsRequest(format=7), "format"),  # type: ignore[arg-type]
        ("ImportSegments", pb.ImportSegmentsRequest(), "segments"),
        ("ImportSegments", pb.ImportSegmentsRequest(segments=[pb.StoredSegment()]), "segments[0].summary"),
        (
            "ImportSegments",
            pb.ImportSegmentsRequest(segments=[pb.StoredSegment(summary="x", memory_type=9)]),  # type: ignore[arg-type]
            "segments[0].memory_type",
        ),
        (
            "ImportSegments",
            pb.ImportSegmentsRequest(segments=[pb.StoredSegment(summary="x", created_at={"seconds": 10**12})]),
            "segments[0].created_at",
        ),
        (
            "ImportSegments",
            pb.ImportSegmentsRequest(segments=[pb.StoredSegment(summary="x", data_json="[")]),
            "segments[0].data_json",
        ),
        (
            "ImportSegments",
            pb.ImportSegmentsRequest(
                segments=[pb.StoredSegment(summary="x", data_json='{"a": 123456789012345678901}')]
            ),
            "segments[0].data_json",
        ),
        ("ListVersions", pb.ListVersionsRequest(), "segment_id"),
    ],
)
def test_request_when_malformed_then_the_field_is_named(
    stub: SegmentServiceStub, keys: dict[str, str], name: str, request_: Any, field: str
) -> None:
    code, named = failure(getattr(stub, name), request_, metadata=bearer(keys["ann"]))
    assert (code, named) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def test_audit_when_segments_are_changed_read_and_exported_then_each_is_recorded(
    system: System, stub: SegmentServiceStub, keys: dict[str, str]
) -> None:
    (segment,) = bring(stub, keys["ben"], "Ben's secret words")
    metadata = bearer(keys["ben"])
    stub.AddTags(pb.AddTagsRequest(segment_id=segment, tags=["secret tag"]), metadata=metadata)
    stub.RemoveTags(pb.RemoveTagsRequest(segment_id=segment, tags=["t"]), metadata=metadata)
    stub.ListVersions(pb.ListVersionsRequest(segment_id=segment), metadata=metadata)
    exported(stub, keys["ben"])
    done = system.cli("audit", "tail", "--limit", "500", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    mine = {e["event_type"]: e for e in events if e["user_id"] == "ben" and e["outcome"] == "ok"}
    assert {"segment.import", "segment.tag", "segment.untag", "segment.export"} <= set(mine)
    assert mine["segment.tag"]["resource"] == f"segment/{segment}"
    assert "secret" not in done.stdout
