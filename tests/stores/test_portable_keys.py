"""Keys carried from one store to another: every type, times of expiry, and what is deleted since."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from memoryos_server.stores.migrate import MigrationError, Place, migrate
from memoryos_server.stores.portable_keys import Digest, group_of, key_names, read_keys, write_pieces
from memoryos_server.stores.portable_points import EdgePoints
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import MANIFEST, MIGRATION
from tests.stores.embedded_fixtures import indexed, opened, subject, turn
from tests.stores.redis_fixtures import Valkey, said
from tests.system import free_port


@pytest.fixture
async def over_tcp(tmp_path: Path) -> AsyncIterator[Client]:
    """A store behind TCP, as a live one is."""
    (tmp_path / "live").mkdir()
    port = free_port()
    server = Valkey(tmp_path / "live", "--port", str(port), "--bind", "127.0.0.1")
    server.start()
    client = Client(f"redis://127.0.0.1:{port}")
    yield client
    await client.aclose()
    server.remove()


@pytest.fixture
async def client(store_url: str) -> AsyncIterator[Client]:
    opened_client = Client(store_url)
    yield opened_client
    await opened_client.aclose()


async def digest(client: Client) -> tuple[int, str]:
    found = Digest()
    for names in (await key_names(client)).values():
        async for piece in read_keys(client, names):
            found.add(piece)
    return found.count, found.value


async def fill(client: Client) -> None:
    raw = os.urandom(300)
    await client.run("SET", "{p001}:string", raw)
    await client.run("SET", "{p001}:short", "gone soon", "PX", 3_600_000)
    await client.run("RPUSH", "{p001}:list", *(raw + bytes([n % 256, n // 256]) for n in range(700)))
    await client.run("SADD", "{p002}:set", *(b"m%d" % n for n in range(3000)))
    await client.run("HSET", "{p002}:hash", *(part for n in range(3000) for part in (b"f%d" % n, raw)))
    await client.run("ZADD", "{p002}:zset", *(part for n in range(700) for part in (n / 7, b"z%d" % n)))
    await client.run("ZADD", "{p002}:ends", "-inf", "low", "inf", "high", "0.1", "between")
    for n in range(600):
        await client.run("XADD", "{p003}:stream", f"{n + 1}-7", "e", raw, "w", b"")
    await client.run("XDEL", "{p003}:stream", "600-7", "3-7")
    await client.run("XADD", "{p003}:emptied", "5-5", "a", "b")
    await client.run("XDEL", "{p003}:emptied", "5-5")
    await client.run("SET", "somebody else's", "x")


async def test_keys_when_carried_to_another_store_then_everything_of_ours_is_equal(
    client: Client, over_tcp: Client
) -> None:
    await fill(client)
    for names in (await key_names(client)).values():
        await write_pieces(over_tcp, [piece async for piece in read_keys(client, names)])
    assert await digest(over_tcp) == await digest(client)
    assert await over_tcp.run("EXISTS", "somebody else's") == 0
    assert 0 < await over_tcp.run("PTTL", "{p001}:short") <= 3_600_000
    assert await over_tcp.run("PTTL", "{p001}:string") == -1
    assert await over_tcp.run("XLEN", "{p003}:emptied") == 0
    for name, newest in ((b"{p003}:stream", b"600-7"), (b"{p003}:emptied", b"5-5")):
        assert {piece.newest async for piece in read_keys(over_tcp, [name])} == {newest}


@pytest.mark.parametrize(
    "change",
    [
        ("SET", "{p001}:string", "other"),
        ("LSET", "{p001}:list", 5, "other"),
        ("HSET", "{p002}:hash", "f7", "other"),
        ("SREM", "{p002}:set", "m7"),
        ("ZADD", "{p002}:zset", 8, "z7"),
        ("XDEL", "{p003}:stream", "5-7"),
        ("PERSIST", "{p001}:short"),
        ("DEL", "{p003}:emptied"),
    ],
)
async def test_digest_when_anything_changes_then_differs(client: Client, change: tuple[str | int, ...]) -> None:
    await fill(client)
    before = await digest(client)
    assert await digest(client) == before
    await client.run(*change)
    assert await digest(client) != before


def test_group_when_a_key_is_not_ours_then_is_none() -> None:
    assert [group_of(name) for name in (b"{p007}:queue", b"{memoryos}:manifest", b"{p7}:x", b"x", b"{p007}x")] == [
        "p007",
        "memoryos",
        "",
        "",
        "",
    ]


async def test_migrate_when_the_target_is_behind_tcp_then_it_opens_there_and_what_is_cut_off_is_refused(
    tmp_path: Path, store: RedisStore, over_tcp: Client, client: Client
) -> None:
    ann = await store.subjects.open("default", "ann")
    await store.turns.accept(ann, [said(ann, f"e{n}") for n in range(50)])
    await client.run("SET", "{p001}:soon", "x", "PX", 200)
    async with opened(tmp_path / "a") as (stores, vectors), opened(tmp_path / "b", dense={}) as (others, _):
        one = subject()
        await vectors.insert(one, [indexed(turn(), small=[float(n), 1, 2, 3]) for n in range(3000)])
        async with EdgePoints(stores.vectors_socket) as ours, EdgePoints(others.vectors_socket) as theirs:
            source, target = Place("here", client, ours), Place("there", over_tcp, theirs)
            moving = migrate(source, target)
            async for step in moving:
                if step["stage"] == "points" and step["at"] > 1500:
                    break
            await moving.aclose()
            assert await over_tcp.run("EXISTS", MIGRATION, MANIFEST) == 1
            time.sleep(0.25)  # noqa: ASYNC251  # until what expires is gone
            steps = [step async for step in migrate(source, target)]
            done = steps[-1]
            assert (done["resumed"], done["points"]["main"]) == (True, 3000)
            assert next(step["at"] for step in steps) > 1000  # went on, did not begin again
            assert await over_tcp.run("EXISTS", MIGRATION) == 0
            assert await digest(over_tcp) == await digest(client)
            with pytest.raises(MigrationError, match="is not empty"):
                await anext(migrate(source, target))


async def test_migrate_when_somebody_writes_meanwhile_then_says_so_and_goes_on_when_run_again(
    tmp_path: Path, store: RedisStore, over_tcp: Client, client: Client
) -> None:
    await client.run("SET", "{p001}:one", "x")
    async with (
        opened(tmp_path / "a", dense={}) as (stores, _),
        opened(tmp_path / "b", dense={}) as (others, _),
        EdgePoints(stores.vectors_socket) as ours,
        EdgePoints(others.vectors_socket) as theirs,
    ):
        source, target = Place("here", client, ours), Place("there", over_tcp, theirs)
        moving = migrate(source, target)
        await anext(moving)
        await client.run("SET", "{p001}:one", "y")
        with pytest.raises(MigrationError, match="did a server write meanwhile"):
            async for _step in moving:
                pass
        assert [step async for step in migrate(source, target)][-1]["done"]
        assert await over_tcp.run("GET", "{p001}:one") == b"y"
