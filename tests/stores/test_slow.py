"""What health says of a store that answers slowly: it is up, also if each answer takes longer than a probe waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from memoryos_server.health import Health
from memoryos_server.rpc.grpc_health import HealthBoard
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import EXPECTED
from tests.valkeys import HOST, MASTER_KEY, TcpValkey, proxy


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[TcpValkey]:
    server = TcpValkey(tmp_path / "valkey", password="a-password").start()
    yield server
    server.remove()


@dataclass
class Relay:
    """What stands in front of the store.

    Attributes:
        port: Where it listens.
        delay: Seconds by which each answer is late.
    """

    port: int = 0
    delay: float = 0.0


@pytest.fixture
def relay(valkey: TcpValkey) -> Iterator[Relay]:
    made = Relay()
    with proxy(valkey.port, pause=lambda: made.delay) as made.port:
        yield made


@pytest.fixture
async def slow(valkey: TcpValkey, relay: Relay) -> AsyncIterator[RedisStore]:
    url = f"redis://:{valkey.password}@{HOST}:{relay.port}"
    async with RedisStore.connect(url, MasterKeys(MASTER_KEY, None), EXPECTED) as connected:
        yield connected


def watching(store: RedisStore) -> Health:
    async def up() -> None:
        return

    return Health(
        redis=store.ping,
        vectors=up,
        board=HealthBoard([]),
        metrics=Metrics(),
        logger=structlog.get_logger(),
        breakers={"redis": store.client.breaker},
    )


async def until(health: Health, up: bool, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while health.state.redis is not up:  # noqa: ASYNC110  # what is waited for happens in objects that signal nothing
            await asyncio.sleep(0.02)


async def test_health_when_each_answer_is_later_than_a_probe_waits_then_the_store_is_up_and_stays_so(
    slow: RedisStore, relay: Relay
) -> None:
    async with watching(slow) as health:
        await until(health, True, 3)
        relay.delay = 0.9
        await asyncio.sleep(1.0)
        await until(health, True, 4)
        for _ in range(40):
            assert health.state.redis
            await asyncio.sleep(0.1)


async def test_health_when_even_connecting_takes_longer_than_a_probe_waits_then_the_store_comes_up(
    slow: RedisStore, relay: Relay
) -> None:
    relay.delay = 0.5  # for each step of the handshake
    await slow.client.aclose()  # so that the next probe connects anew
    async with watching(slow) as health:
        assert not health.state.redis
        await until(health, True, 5)


async def test_health_when_a_slow_store_hangs_then_it_is_down_and_up_once_it_is_back(
    slow: RedisStore, relay: Relay, valkey: TcpValkey
) -> None:
    relay.delay = 0.9
    async with watching(slow) as health:
        await until(health, True, 6)
        valkey.pause()
        await until(health, False, 5)
        await asyncio.sleep(1.0)
        assert not health.state.redis
        relay.delay = 0.0
        valkey.resume()
        await until(health, True, 3)
