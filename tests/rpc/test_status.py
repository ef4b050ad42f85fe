from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from scratch.v1 import scratch_service_pb2 as pb

from memoryos.v1 import error_reason_pb2
from memoryos_server.domain.core import faults
from memoryos_server.rpc import status
from tests.rpc.conftest import failure
from tests.scratch.serve import Scratch

CODES = {
    "Invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "Unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "Forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "NotFound": grpc.StatusCode.NOT_FOUND,
    "Exists": grpc.StatusCode.ALREADY_EXISTS,
    "Stale": grpc.StatusCode.ABORTED,
    "Expired": grpc.StatusCode.FAILED_PRECONDITION,
    "TooLarge": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TooMany": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "Upstream": grpc.StatusCode.UNAVAILABLE,
    "BackendDown": grpc.StatusCode.UNAVAILABLE,
    "DeadlineExceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
async def test_fault_when_raised_then_has_its_code_and_reason(stub: Any, name: str, code: grpc.StatusCode) -> None:
    seen = await failure(stub.FailThing(pb.FailThingRequest(fault=name)))
    assert (seen.code, seen.domain, seen.message) == (code, "memoryos", f"It failed with {name}")
    assert seen.reason == getattr(faults, name).reason.upper()


def test_fault_classes_when_listed_then_all_are_in_the_table_and_their_reasons_in_the_proto() -> None:
    classes = [c for c in vars(faults).values() if isinstance(c, type) and issubclass(c, faults.Fault)]
    assert {c.__name__ for c in classes} == {*CODES, "Fault", "UpstreamRejected"}
    for cls in classes:
        assert f"ERROR_REASON_{cls.reason.upper()}" in error_reason_pb2.ErrorReason.keys()  # noqa: SIM118  # an enum, not a dict


async def test_fault_when_it_has_another_reason_then_that_one_is_told(stub: Any) -> None:
    seen = await failure(stub.FailThing(pb.FailThingRequest(fault="Exists:event_id_conflict")))
    assert (seen.code, seen.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EVENT_ID_CONFLICT")


async def test_invalid_when_it_names_a_field_then_bad_request_and_metadata_name_it(stub: Any) -> None:
    seen = await failure(stub.FailThing(pb.FailThingRequest(fault="Invalid")))
    assert seen.violations == [("fault", "It failed with Invalid")]
    assert seen.metadata == {"param": "fault", "details": "More about it"}


async def test_too_many_when_it_knows_when_then_retry_info_says_so(stub: Any) -> None:
    seen = await failure(stub.FailThing(pb.FailThingRequest(fault="TooMany", retry_after_seconds=2.5)))
    assert seen.retry_after == 2.5


async def test_fault_when_it_does_not_know_when_then_there_is_no_retry_info(stub: Any) -> None:
    seen = await failure(stub.FailThing(pb.FailThingRequest(fault="TooMany")))
    assert seen.retry_after is None


@pytest.mark.parametrize(
    ("upstream", "code"),
    [
        (400, grpc.StatusCode.INVALID_ARGUMENT),
        (404, grpc.StatusCode.NOT_FOUND),
        (413, grpc.StatusCode.INVALID_ARGUMENT),
        (422, grpc.StatusCode.INVALID_ARGUMENT),
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_upstream_rejected_when_raised_then_keeps_what_the_provider_said(
    stub: Any, upstream: int, code: grpc.StatusCode
) -> None:
    seen = await failure(stub.FailThing(pb.FailThingRequest(fault=f"UpstreamRejected:{upstream}")))
    assert (seen.code, seen.reason) == (code, "UPSTREAM_REJECTED")
    assert seen.metadata == {"upstream_status": str(upstream), "upstream_code": "their_code", "param": "temperature"}


async def test_crash_when_a_handler_fails_then_the_client_learns_nothing_and_the_log_the_place(
    running: Scratch, stub: Any
) -> None:
    seen = await failure(stub.FailThing(pb.FailThingRequest()))
    assert (seen.code, seen.reason, seen.message) == (grpc.StatusCode.INTERNAL, "INTERNAL", status.INTERNAL_MESSAGE)
    log = running.log.getvalue().decode()
    assert "RuntimeError" in log
    assert "servicer.py" in log
    assert "a secret that nobody may see" not in log


async def test_stream_when_it_breaks_off_then_what_came_before_is_there_and_the_status_tells(stub: Any) -> None:
    call = stub.ExportThings(pb.ExportThingsRequest(count=5, fail_at=3))
    got = [(await call.read()).data.things[0].id for _ in range(2)]
    assert got == ["thing-1", "thing-2"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_status_when_texts_are_long_then_it_fits_into_trailers() -> None:
    fault = faults.Invalid("字" * 100_000, param="x" * 10_000, details="é%" * 10_000)
    made = status.to_status(fault)
    percent_encoded = sum(1 if c.isascii() and c != "%" else 3 * len(c.encode()) for c in made.message)
    assert percent_encoded + made.ByteSize() * 4 / 3 < 8000
    assert made.message.startswith("字字")
    assert made.message.endswith("…")


def test_status_when_a_plain_fault_is_raised_then_it_is_internal_and_says_nothing() -> None:
    made = status.to_status(faults.Fault("what nobody should read"))
    info = error_details_pb2.ErrorInfo()
    assert made.details[0].Unpack(info)
    assert (made.code, info.reason) == (13, "INTERNAL")
    assert "nobody" not in str(status_pb2.Status.FromString(made.SerializeToString()))


async def test_message_when_it_is_chinese_then_it_arrives_whole(stub: Any) -> None:
    seen = await failure(stub.UpdateThing(pb.UpdateThingRequest(id="没有这个")))
    assert seen.message == "There is no thing 没有这个"
    assert seen.metadata == {"id": "没有这个"}
