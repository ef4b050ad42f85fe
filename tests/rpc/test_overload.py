from __future__ import annotations

import asyncio
from typing import Any

import grpc
from scratch.v1 import scratch_service_pb2 as pb

from memoryos.v1 import system_service_pb2 as system
from tests.rpc.conftest import client, failure, lines
from tests.scratch.serve import run_scratch


def slow(count: int = 100) -> pb.ExportThingsRequest:
    return pb.ExportThingsRequest(count=count, note="slow")


async def begun(stub: Any, calls: int) -> list[Any]:
    streams = [stub.ExportThings(slow()) for _ in range(calls)]
    for stream in streams:
        await stream.read()
    return streams


async def test_calls_when_as_many_are_under_way_as_may_then_the_next_is_told_when_to_come_back() -> None:
    async with run_scratch(max_concurrent_calls=2) as running, client(running.address) as stub:
        streams = await begun(stub, 2)
        for refused in (stub.GetThing(pb.GetThingRequest(id="a")), stub.ExportThings(slow())):
            seen = await failure(refused)
            assert (seen.code, seen.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS")
            assert seen.retry_after == 1.0
            assert seen.headers["x-request-id"]
        assert [line["reason"] for line in lines(running)] == ["too_many_requests"] * 2
        assert 'memoryos_refused_total{limit="calls"} 2.0' in await running.metrics.text()
        streams[0].cancel()
        async with asyncio.timeout(2):
            while running.servicer.running > 1:  # noqa: ASYNC110  # nothing signals it
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
        await stub.GetSavedThings(pb.GetSavedThingsRequest())
        streams[1].cancel()


async def test_calls_when_there_is_no_room_then_probes_and_metrics_are_answered() -> None:
    async with run_scratch(max_concurrent_calls=1) as running, client(running.address) as stub:
        (stream,) = await begun(stub, 1)
        await stub.ProbeThing(pb.ProbeThingRequest())
        async with grpc.aio.insecure_channel(running.address) as channel:
            ask = channel.unary_unary(
                "/memoryos.v1.SystemService/GetMetrics",
                request_serializer=system.GetMetricsRequest.SerializeToString,
                response_deserializer=system.GetMetricsResponse.FromString,
            )
            assert "memoryos_rpc_in_flight" in (await ask(system.GetMetricsRequest())).text
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert await check(b"") == b"\x08\x01"
        stream.cancel()


async def test_calls_when_unbounded_then_all_are_let_in() -> None:
    async with run_scratch(max_concurrent_calls=0) as running, client(running.address) as stub:
        streams = await begun(stub, 40)
        assert running.servicer.running == 40
        for stream in streams:
            stream.cancel()
