from __future__ import annotations

import asyncio
import signal

import pytest
import uvloop
from redis import Redis
from redis.asyncio import Connection, UnixDomainSocketConnection

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import Client, _translated
from tests.stores.redis_fixtures import Valkey, said


@pytest.mark.parametrize("steps", range(12))
async def test_cancel_when_it_comes_at_any_step_of_connecting_then_is_never_swallowed(
    valkey: Valkey, steps: int
) -> None:
    client = Client(valkey.url)

    async def work() -> None:
        while True:
            await client.run("PING")
            async with client.subscribe("x"):
                pass

    task = asyncio.create_task(work())
    for _ in range(steps):
        await asyncio.sleep(0.0002)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    assert done
    assert task.cancelled()
    await client.aclose()


async def test_send_when_another_task_closed_the_connection_then_is_down_and_mistakes_stay_mistakes() -> None:
    connection = Connection()  # one whose writer is gone
    with pytest.raises(BackendDown), _translated():
        await connection._send_packed_command([b"PING"])
    with pytest.raises(AttributeError), _translated():
        raise AttributeError("one of ours")


def test_send_when_the_transport_is_closed_under_uvloop_then_is_down(valkey: Valkey) -> None:
    async def main() -> None:
        connection = UnixDomainSocketConnection(path=valkey.socket)
        await connection.connect()
        assert connection._writer
        connection._writer.transport.abort()
        with pytest.raises(BackendDown), _translated():
            await connection.send_packed_command([b"PING"])

    uvloop.run(main())


async def test_run_when_cancelled_midway_then_the_next_answers_are_not_mixed_up(store: RedisStore) -> None:
    echo = ("EVAL", "return ARGV[1]", 1, "key")  # a cluster asks for a key
    for number in range(50):
        task = asyncio.create_task(store.client.run(*echo, f"lost {number}"))
        await asyncio.sleep(0.00002 * number)
        task.cancel()
        await asyncio.wait([task])
        assert await store.client.run(*echo, f"{number}") == str(number).encode()


async def test_accept_when_the_store_is_full_then_is_down_and_nothing_is_written(
    store: RedisStore, admins: list[Redis]
) -> None:
    ann = await store.subjects.open("acme", "ann")
    for admin in admins:
        admin.config_set("maxmemory", 1)
    with pytest.raises(BackendDown, match="full"):
        await store.turns.accept(ann, [said(ann, "e1")])
    with pytest.raises(BackendDown, match="full"):
        await store.ping()
    assert await store.turns.recent(ann, 20) == []
    assert await store.queue.backlog() == {}
    for admin in admins:
        admin.config_set("maxmemory", 0)
    await store.ping()
    assert not (await store.turns.accept(ann, [said(ann, "e1")]))[0].duplicate


async def test_run_when_the_store_is_stopped_but_not_gone_then_is_down_in_time(
    store: RedisStore, valkey: Valkey
) -> None:
    assert valkey.process is not None
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(BackendDown):
            await store.ping()
        assert loop.time() - started < 8
    finally:
        valkey.process.send_signal(signal.SIGCONT)


async def test_run_when_even_a_new_connection_stays_silent_then_the_next_command_waits_only_briefly(
    valkey: Valkey,
) -> None:
    assert valkey.process is not None
    client = Client(valkey.url)  # nothing is connected yet: the first command opens a connection
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        loop = asyncio.get_running_loop()
        with pytest.raises(BackendDown):
            await client.run("PING")
        started = loop.time()
        with pytest.raises(BackendDown):
            await client.run("PING")
        assert loop.time() - started < 2
    finally:
        valkey.process.send_signal(signal.SIGCONT)
        await client.aclose()
