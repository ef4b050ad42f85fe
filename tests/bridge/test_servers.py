"""A bridge to several servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest

from memoryos import schema
from memoryos.settings import BridgeSettings, ServerSettings, Settings, SettingsError
from memoryos.v1 import (
    segment_service_pb2,
    segment_service_pb2_grpc,
    system_service_pb2,
    system_service_pb2_grpc,
)
from memoryos_bridge.app import target
from tests.bridge.chat_server import SystemServer
from tests.bridge.conftest import run_bridge, until
from tests.scratch.serve import Scratch, run_scratch

PATH = "/v1/scratch/things"


def calls(server: Scratch) -> float:
    samples = (sample for family in server.metrics.requests.collect() for sample in family.samples)
    return sum(one.value for one in samples if one.name.endswith("_total") and "ListThings" in str(one.labels))


def named(server: str) -> Settings:
    return Settings(bridge=BridgeSettings(server=server), server=ServerSettings(listen="0.0.0.0:7000"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "127.0.0.1:7000"),
        ("memoryos-server:50051", "memoryos-server:50051"),
        ("10.0.0.1:1, 10.0.0.2:2,", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
    ],
)
def test_target_when_servers_are_named_then_it_is_one_that_grpc_takes(given: str, expected: str) -> None:
    assert target(named(given)) == expected


@pytest.mark.parametrize("given", ["one:1,two:2", "10.0.0.1:1,[::1]:2", "10.0.0.1,10.0.0.2", "10.0.0.1:1,two:2"])
def test_target_when_a_list_is_not_of_addresses_then_it_is_refused_and_named(given: str) -> None:
    with pytest.raises(SettingsError, match=r"bridge\.server"):
        target(named(given))


async def test_calls_when_there_are_two_servers_then_each_gets_its_share_and_one_that_drains_none() -> None:
    async with (
        run_scratch(drain_seconds=1.0) as one,
        run_scratch() as two,
        run_bridge(f"{one.address},{two.address}") as bridge,
    ):

        async def both() -> bool:
            assert (await bridge.client.get(PATH)).status_code == 200
            return bool(calls(one) and calls(two))

        async with asyncio.timeout(10):
            while not await both():
                pass
        stopping = asyncio.create_task(one.server.stop())
        await asyncio.sleep(0.5)
        before = calls(one)
        for _ in range(20):
            assert (await bridge.client.get(PATH)).status_code == 200
        assert calls(one) == before
        assert not stopping.done()
        while not stopping.done():
            assert (await bridge.client.get(PATH)).status_code == 200
        await stopping
        for _ in range(20):
            assert (await bridge.client.get(PATH)).status_code == 200


async def test_calls_when_both_stores_of_a_server_are_down_then_it_still_gets_them() -> None:
    async with run_scratch() as one, run_bridge(one.address) as bridge:
        one.redis.up = one.vectors.up = False
        await until(lambda: one.health.state.degraded and not one.health.state.redis, 5)
        assert (await bridge.client.get(PATH)).status_code == 200


class Exporting(segment_service_pb2_grpc.SegmentServiceServicer):
    """Is gone for some calls before the first piece, or once after it."""

    def __init__(self, gone: int = 0, *, cut: bool = False) -> None:
        self.gone = gone
        self.cut = cut
        self.calls = 0

    async def ExportSegments(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        self.calls += 1
        if self.calls <= self.gone:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield segment_service_pb2.ExportSegmentsResponse(
            format=segment_service_pb2.EXPORT_FORMAT_MARKDOWN, content="# Ann"
        )
        if self.cut:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


async def exported(servicer: Exporting) -> httpx.Response:
    server = grpc.aio.server()
    segment_service_pb2_grpc.add_SegmentServiceServicer_to_server(servicer, server)
    system_service_pb2_grpc.add_SystemServiceServicer_to_server(SystemServer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    methods = schema.load([system_service_pb2.DESCRIPTOR, segment_service_pb2.DESCRIPTOR])
    try:
        async with run_bridge(f"127.0.0.1:{port}", methods) as bridge:
            body = {"user_id": "ann", "format": "markdown"}
            return await bridge.client.post("/v1/memory/manage/export", json=body)
    finally:
        await server.stop(None)


async def test_stream_when_the_server_is_gone_before_the_first_piece_then_it_is_asked_again() -> None:
    servicer = Exporting(gone=2)
    answer = await exported(servicer)
    assert (answer.status_code, servicer.calls) == (200, 3)
    assert answer.json()["content"] == "# Ann"


async def test_stream_when_the_server_stays_away_then_503_after_three_tries() -> None:
    servicer = Exporting(gone=9)
    answer = await exported(servicer)
    assert (answer.status_code, servicer.calls) == (503, 3)


async def test_stream_when_the_server_goes_after_the_first_piece_then_nothing_is_repeated() -> None:
    servicer = Exporting(cut=True)
    with pytest.raises(httpx.RemoteProtocolError):
        await exported(servicer)
    assert servicer.calls == 1
