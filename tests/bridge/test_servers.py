"""A bridge to several servers."""

from __future__ import annotations

import asyncio

import pytest

from memoryos.settings import BridgeSettings, ServerSettings, Settings, SettingsError
from memoryos_bridge.app import target
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
