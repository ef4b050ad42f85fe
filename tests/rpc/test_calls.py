from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import grpc
import pytest
from scratch.v1 import scratch_service_pb2 as pb

from tests.rpc.conftest import client, failure, lines
from tests.scratch.serve import Scratch, run_scratch


async def eventually(condition: Any, seconds: float = 2.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in objects that signal nothing
            await asyncio.sleep(0.005)


async def test_deadline_when_the_policy_gives_50_ms_then_the_call_ends_near_them_and_its_finally_ran(
    running: Scratch, stub: Any
) -> None:
    await stub.ProbeThing(pb.ProbeThingRequest())  # the connection's own time does not count
    started = time.perf_counter()
    seen = await failure(stub.SleepThing(pb.SleepThingRequest(seconds=5)))
    took = time.perf_counter() - started
    assert (seen.code, seen.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert 0.045 < took < 1.0
    assert running.servicer.finished == ["SleepThing"]


async def test_deadline_when_the_client_asks_for_more_than_the_policy_then_the_policy_wins(stub: Any) -> None:
    started = time.perf_counter()
    seen = await failure(stub.SleepThing(pb.SleepThingRequest(seconds=5), timeout=60))
    assert seen.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.perf_counter() - started < 2.0


async def test_deadline_when_the_client_brings_a_shorter_one_then_the_handler_ends_at_it(
    running: Scratch, stub: Any
) -> None:
    await stub.ProbeThing(pb.ProbeThingRequest())
    call = stub.ExportThings(pb.ExportThingsRequest(count=1000, note="slow"), timeout=0.12)
    seen = await failure(call)
    assert seen.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: running.servicer.finished == ["ExportThings"])
    await eventually(lambda: len(lines(running)) == 2)
    assert lines(running)[-1]["code"] == "DEADLINE_EXCEEDED"


async def test_call_when_it_is_faster_than_its_deadline_then_it_is_answered(stub: Any) -> None:
    assert (await stub.SleepThing(pb.SleepThingRequest(seconds=0.001))).name == "awake"


async def test_cancel_when_the_client_leaves_a_stream_then_the_handlers_finally_runs(
    running: Scratch, stub: Any
) -> None:
    call = stub.ExportThings(pb.ExportThingsRequest(count=1000, note="slow"))
    await call.read()
    assert running.servicer.running == 1
    call.cancel()
    await eventually(lambda: running.servicer.finished == ["ExportThings"], 0.5)
    assert running.servicer.running == 0
    await eventually(lambda: lines(running))
    assert lines(running)[-1]["code"] == "CANCELLED"


async def test_cancel_when_the_client_stops_reading_a_stream_and_leaves_then_the_finally_runs(
    running: Scratch, stub: Any
) -> None:
    # The handler is not waiting for anything of its own, but for room on the wire: it hangs in a write.
    call = stub.ExportThings(pb.ExportThingsRequest(count=4_000_000_000, note="x" * 900))
    await call.read()
    await asyncio.sleep(0.3)
    call.cancel()
    await eventually(lambda: running.servicer.finished == ["ExportThings"])


async def test_cancel_when_the_client_leaves_a_unary_call_then_the_handlers_finally_runs(
    running: Scratch, stub: Any
) -> None:
    await stub.ProbeThing(pb.ProbeThingRequest())
    call = stub.SleepThing(pb.SleepThingRequest(seconds=5))
    await eventually(lambda: running.servicer.running == 1, 1.0)
    call.cancel()
    await eventually(lambda: running.servicer.finished == ["SleepThing"], 0.5)


async def test_call_when_it_has_ended_then_a_connection_begun_within_it_does_not_hold_its_request(
    running: Scratch, stub: Any
) -> None:
    seconds, note = 0.00125, "of a call that has ended"  # no other test's
    await stub.SleepThing(pb.SleepThingRequest(seconds=seconds))
    async for _ in stub.ExportThings(pb.ExportThingsRequest(count=1, note=note)):
        pass
    assert len(running.servicer.contexts) == 2

    def held() -> list[object]:
        gc.collect()
        found: list[object] = [
            one for one in gc.get_objects() if isinstance(one, pb.SleepThingRequest | pb.ExportThingsRequest)
        ]
        return [one for one in found if seconds == getattr(one, "seconds", 0) or note == getattr(one, "note", "")]

    await eventually(lambda: not held())


async def test_request_id_when_sent_then_it_comes_back_and_is_logged(running: Scratch, stub: Any) -> None:
    call = stub.ProbeThing(pb.ProbeThingRequest(), metadata=[("x-request-id", "mine-1")])
    await call
    assert dict(await call.initial_metadata())["x-request-id"] == "mine-1"
    assert lines(running)[-1]["request_id"] == "mine-1"


@pytest.mark.parametrize("bad", ["", "with blank", "x" * 129])
async def test_request_id_when_malformed_then_another_one_is_made(stub: Any, bad: str) -> None:
    call = stub.ProbeThing(pb.ProbeThingRequest(), metadata=[("x-request-id", bad)])
    await call
    made = dict(await call.initial_metadata())["x-request-id"]
    assert made != bad
    assert len(made) == 36


async def test_request_id_when_the_caller_can_do_without_then_only_what_is_new_to_it_comes(stub: Any) -> None:
    quiet = [("x-request-id", "mine-4"), ("memoryos-quiet", "1")]
    call = stub.ProbeThing(pb.ProbeThingRequest(), metadata=quiet)
    await call
    assert "x-request-id" not in dict(await call.initial_metadata())
    thing = await stub.CreateThing(pb.CreateThingRequest(name="a"))
    call = stub.GetThing(pb.GetThingRequest(id=thing.id, loud=True), metadata=quiet)
    await call
    assert dict(await call.initial_metadata())["x-scratch-loud"] == "yes"
    stream = stub.ExportThings(pb.ExportThingsRequest(count=1), metadata=quiet)
    assert [piece.data.thing_count async for piece in stream] == [1]


async def test_request_id_when_the_call_fails_then_it_comes_back_too(stub: Any) -> None:
    seen = await failure(stub.FailThing(pb.FailThingRequest(fault="NotFound"), metadata=[("x-request-id", "mine-2")]))
    assert seen.headers["x-request-id"] == "mine-2"


async def test_request_id_when_a_stream_starts_then_it_comes_with_the_first_message(stub: Any) -> None:
    call = stub.ExportThings(pb.ExportThingsRequest(count=1), metadata=[("x-request-id", "mine-3")])
    assert dict(await call.initial_metadata())["x-request-id"] == "mine-3"
    assert [piece.data.thing_count async for piece in call] == [1]


async def test_extra_metadata_when_a_handler_sets_it_then_the_client_gets_it(stub: Any) -> None:
    thing = await stub.CreateThing(pb.CreateThingRequest(name="a"))
    call = stub.GetThing(pb.GetThingRequest(id=thing.id, loud=True))
    assert (await call).name == "a"
    assert dict(await call.initial_metadata())["x-scratch-loud"] == "yes"


async def test_log_when_a_call_ends_then_one_line_says_what_it_was(running: Scratch, stub: Any) -> None:
    await stub.CreateThing(
        pb.CreateThingRequest(name="private words"), metadata=[("x-tenant-id", "acme"), ("authorization", "Bearer k3y")]
    )
    (line,) = lines(running)
    assert line.pop("ts").endswith("Z")
    assert line.pop("duration_ms") > 0
    assert len(line.pop("request_id")) == 36
    assert line.pop("bytes_out") > 50
    assert line == {
        "event": "rpc",
        "level": "info",
        "method": "/scratch.v1.ScratchService/CreateThing",
        "code": "OK",
        "tenant": "acme",
        "principal": "anonymous",
        "peer": "127.0.0.1",
        "bytes_in": 15,
        "degraded": False,
    }
    log = running.log.getvalue()
    assert b"private words" not in log
    assert b"k3y" not in log


async def test_metrics_when_calls_end_then_they_are_counted_by_method_and_code(running: Scratch, stub: Any) -> None:
    await stub.ProbeThing(pb.ProbeThingRequest())
    await stub.ProbeThing(pb.ProbeThingRequest())
    await failure(stub.FailThing(pb.FailThingRequest(fault="NotFound")))
    [_ async for _ in stub.ExportThings(pb.ExportThingsRequest(count=3))]
    text = await running.metrics.text()
    service = "/scratch.v1.ScratchService"
    assert f'memoryos_rpc_requests_total{{code="OK",method="{service}/ProbeThing"}} 2.0' in text
    assert f'memoryos_rpc_requests_total{{code="NOT_FOUND",method="{service}/FailThing"}} 1.0' in text
    assert f'memoryos_rpc_requests_total{{code="OK",method="{service}/ExportThings"}} 1.0' in text
    assert f'memoryos_rpc_duration_seconds_count{{method="{service}/ProbeThing"}} 2.0' in text
    assert f'memoryos_rpc_in_flight{{method="{service}/ExportThings"}} 0.0' in text


async def test_metrics_when_a_call_is_under_way_then_it_is_in_flight(running: Scratch, stub: Any) -> None:
    call = stub.ExportThings(pb.ExportThingsRequest(count=100, note="slow"))
    await call.read()
    assert (
        'memoryos_rpc_in_flight{method="/scratch.v1.ScratchService/ExportThings"} 1.0' in await running.metrics.text()
    )
    call.cancel()


async def test_request_when_it_is_over_the_methods_limit_then_it_is_too_large(stub: Any) -> None:
    seen = await failure(stub.ExportThings(pb.ExportThingsRequest(note="x" * 1000)))
    assert (seen.code, seen.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE")
    assert seen.metadata["limit_bytes"] == "1000"


async def test_request_when_malformed_then_it_is_invalid(running: Scratch) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        call = channel.unary_unary("/scratch.v1.ScratchService/GetThing", lambda raw: raw, lambda raw: raw)
        seen = await failure(call(b"\xff\xff\xff"))
    assert (seen.code, seen.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


async def test_request_when_a_required_field_is_missing_then_it_is_named(stub: Any) -> None:
    seen = await failure(stub.CreateThing(pb.CreateThingRequest(owner="a")))
    assert (seen.code, seen.metadata["param"]) == (grpc.StatusCode.INVALID_ARGUMENT, "name")
    assert seen.violations == [("name", "name is required")]


async def test_request_when_a_required_enum_is_unspecified_then_it_is_missing(stub: Any) -> None:
    seen = await failure(stub.DeleteThings(pb.DeleteThingsRequest()))
    assert (seen.code, seen.metadata["param"]) == (grpc.StatusCode.INVALID_ARGUMENT, "kind")


async def test_request_when_an_enum_value_is_unknown_then_it_is_named(stub: Any) -> None:
    seen = await failure(stub.ListThings(pb.ListThingsRequest(kind=77)))
    assert (seen.code, seen.metadata["param"]) == (grpc.StatusCode.INVALID_ARGUMENT, "kind")


async def test_two_calls_when_they_run_at_once_then_each_has_its_own_caller() -> None:
    async with run_scratch() as running, client(running.address) as stub:
        calls = [
            stub.CreateThing(pb.CreateThingRequest(name="a"), metadata=[("x-user-id", f"user-{n}")]) for n in range(20)
        ]
        assert [thing.owner for thing in await asyncio.gather(*calls)] == [f"user-{n}" for n in range(20)]


async def test_stream_when_the_client_takes_nothing_then_its_call_ends_and_its_finally_has_run() -> None:
    async with run_scratch(reader_idle_seconds=0.5) as running, client(running.address) as stub:
        call = stub.ExportThings(pb.ExportThingsRequest(count=100_000, note="x" * 900))
        await call.read()
        await eventually(lambda: lines(running), 60)
        (line,) = lines(running)
        assert (line["code"], line["reason"]) == ("CANCELLED", "reader_idle")
        assert line["bytes_out"] < 50_000_000
        assert running.servicer.finished == ["ExportThings"]

        async def rest() -> None:
            while await call.read() is not grpc.aio.EOF:  # what was on the way, and then the end
                pass

        async with asyncio.timeout(60):
            with pytest.raises(grpc.aio.AioRpcError, match="took nothing"):
                await rest()


async def test_stream_when_the_client_is_slow_but_takes_something_then_it_is_not_ended() -> None:
    async with run_scratch(reader_idle_seconds=1.0) as running, client(running.address) as stub:
        taken = 0
        async for _ in stub.ExportThings(pb.ExportThingsRequest(count=300, note="x" * 900)):
            taken += 1
            if taken % 20 == 0:
                await asyncio.sleep(0.15)
        assert taken == 300
