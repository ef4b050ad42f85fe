from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from memoryos_server.domain.ports import SearchQuery
from memoryos_server.stores.embedded import (
    ChildFailedError,
    ChildState,
    DataDirectoryInUseError,
    EmbeddedStores,
    runtime_dir,
)
from memoryos_server.stores.vectors_edge import EdgeVectors
from tests.stores.embedded_fixtures import (
    DENSE,
    Keys,
    indexed,
    kill,
    opened,
    owner_process,
    processes_in,
    running,
    subject,
    turn,
    until,
)

UP = {"valkey": ChildState.UP, "vectors": ChildState.UP}


@pytest.fixture(autouse=True)
def runtime_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Owners that a test kills leave their sockets behind.
    with tempfile.TemporaryDirectory(prefix="mos-") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield


def redis(stores: EmbeddedStores) -> Redis:
    return Redis(unix_socket_path=str(stores.redis_socket), decode_responses=True)


def environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def test_start_when_the_directory_is_new_then_it_is_private_and_both_stores_are_up(tmp_path: Path) -> None:
    stores = EmbeddedStores(tmp_path / "new" / "data", DENSE)
    assert set(stores.states().values()) == {ChildState.DOWN}
    async with stores:
        assert stores.states() == UP
        for path in (tmp_path / "new" / "data", stores.redis_socket.parent):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        pids = stores.pids()
        assert sorted(processes_in(tmp_path)) == sorted(pids.values())
    assert not any(running(pid) for pid in pids.values())
    assert not stores.redis_socket.parent.exists()
    for path in (tmp_path / "new" / "data").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


async def test_valkey_when_started_then_every_write_is_synced_and_nothing_is_evicted(tmp_path: Path) -> None:
    async with EmbeddedStores(tmp_path, DENSE) as stores, redis(stores) as client:
        wanted = {"appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory": "0", "port": "0"}
        for name, value in wanted.items():
            assert (await client.config_get(name))[name] == value


async def test_start_when_another_process_owns_the_directory_then_it_is_refused_with_its_pid(tmp_path: Path) -> None:
    process, pids = await asyncio.to_thread(owner_process, tmp_path)
    try:
        with pytest.raises(DataDirectoryInUseError, match=f"in use by process {process.pid}") as caught:
            await EmbeddedStores(tmp_path, DENSE).__aenter__()
        assert caught.value.pid == process.pid
        assert str(tmp_path) in str(caught.value)
        # The refused one must not have harmed the owner, nor what the lock file says of it.
        with pytest.raises(DataDirectoryInUseError, match=f"in use by process {process.pid}"):
            await EmbeddedStores(tmp_path, DENSE).__aenter__()
        assert all(running(pid) for pid in pids.values())
    finally:
        process.terminate()
        process.communicate()
    await until(lambda: not any(running(pid) for pid in pids.values()))


async def test_start_when_only_an_orphan_child_holds_the_directory_then_it_is_refused(tmp_path: Path) -> None:
    process, pids = await asyncio.to_thread(owner_process, tmp_path)
    os.kill(pids["valkey"], signal.SIGSTOP)  # a child that does not follow its parent yet
    try:
        process.kill()
        process.communicate()
        await until(lambda: not running(pids["vectors"]))
        with pytest.raises(DataDirectoryInUseError, match=rf"is gone, but .*valkey \({pids['valkey']}\)"):
            await EmbeddedStores(tmp_path, DENSE, patience=0.2).__aenter__()
    finally:
        os.kill(pids["valkey"], signal.SIGCONT)
    # With patience, a start waits for the orphan to end.
    async with EmbeddedStores(tmp_path, DENSE) as stores:
        assert stores.states() == UP
        assert not running(pids["valkey"])


@pytest.mark.parametrize("flags", [(), ("uvloop",)])
async def test_children_when_their_parent_is_killed_then_they_end(tmp_path: Path, flags: tuple[str, ...]) -> None:
    process, pids = await asyncio.to_thread(owner_process, tmp_path, *flags)
    process.kill()
    process.communicate()
    await until(lambda: not any(running(pid) for pid in pids.values()), 5)


@pytest.mark.parametrize("part", ["valkey", "vectors"])
async def test_child_when_killed_then_it_is_started_again_and_serves(tmp_path: Path, part: str) -> None:
    ann, said = subject(), turn("tea")
    reconnected: list[str] = []
    async with opened(tmp_path) as (stores, vectors), redis(stores) as client:
        vectors.on_reconnect(lambda: reconnected.append(part))
        await client.set("k", "v")
        await vectors.insert(ann, [indexed(said)])
        await vectors.flush()
        before = stores.pids()
        kill(before[part])
        await until(lambda: stores.states()[part] is not ChildState.UP)
        await until(lambda: stores.states() == UP)
        after = stores.pids()
        assert after[part] != before[part]
        assert sum(after[name] != before[name] for name in before) == 1
        assert await client.get("k") == "v"
        assert await vectors.get(ann, [said.id]) == [said]
        assert reconnected == (["vectors"] if part == "vectors" else [])


async def test_restart_when_everything_was_killed_then_what_was_durable_is_there(tmp_path: Path) -> None:
    ann, keys, said = subject(), Keys(), turn("durable")
    process, pids = await asyncio.to_thread(owner_process, tmp_path)
    stores = EmbeddedStores(tmp_path, DENSE)  # only for its socket paths
    async with EdgeVectors(stores.vectors_socket, keys) as vectors, redis(stores) as client:
        await vectors.insert(ann, [indexed(said, small=[1, 0, 0, 0])])
        await vectors.flush()
        await client.set("k", "v")
        kill(process.pid, *pids.values())
    process.communicate()
    assert stores.redis_socket.exists()  # stale sockets are left and must not matter
    async with opened(tmp_path, keys) as (stores, vectors), redis(stores) as client:
        assert await vectors.get(ann, [said.id]) == [said]
        assert await client.get("k") == "v"


async def test_stop_when_nothing_was_flushed_then_the_stop_flushes(tmp_path: Path) -> None:
    ann, keys, said = subject(), Keys(), turn()
    async with opened(tmp_path, keys) as (_, vectors):
        await vectors.insert(ann, [indexed(said)])
    async with opened(tmp_path, keys) as (_, vectors):
        assert await vectors.get(ann, [said.id]) == [said]


async def test_start_when_the_directory_has_a_very_long_path_then_it_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    async with EmbeddedStores(deep, DENSE) as stores, redis(stores) as client:
        assert len(os.fsencode(stores.vectors_socket)) < 104
        assert await client.ping()


async def test_runtime_dir_when_its_bases_are_too_long_then_it_is_short_and_follows_from_the_real_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("r" * 100)
    long.mkdir()
    (tmp_path / "link").symlink_to(long)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert len(str(runtime_dir(tmp_path / "data"))) < 90
    assert runtime_dir(long) == runtime_dir(tmp_path / "link")
    assert runtime_dir(long) != runtime_dir(tmp_path)


async def test_start_when_the_runtime_dir_can_be_entered_by_others_then_it_is_refused(tmp_path: Path) -> None:
    squatted = runtime_dir(tmp_path)
    squatted.mkdir(mode=0o755)
    try:
        with pytest.raises(PermissionError, match="not a directory of ours"):
            await EmbeddedStores(tmp_path, DENSE).__aenter__()
    finally:
        squatted.rmdir()
    async with EmbeddedStores(tmp_path, DENSE) as stores:  # the failed start let go of the lock
        assert stores.states() == UP


async def test_start_when_the_directory_has_an_older_layout_then_it_is_refused_and_nothing_is_left_running(
    tmp_path: Path,
) -> None:
    (tmp_path / "vectors" / "shard").mkdir(parents=True, mode=0o700)
    with pytest.raises(ChildFailedError, match=r"layout 1, but this version reads layout 2: .*another data directory"):
        await EmbeddedStores(tmp_path, DENSE).__aenter__()
    assert processes_in(tmp_path) == []
    (tmp_path / "vectors" / "shard").rmdir()
    async with EmbeddedStores(tmp_path, DENSE) as stores:
        assert stores.states() == UP


async def test_start_when_no_dense_vectors_are_configured_then_words_alone_are_found(tmp_path: Path) -> None:
    ann, said = subject(), turn("tea")
    async with EmbeddedStores(tmp_path, {}) as stores, EdgeVectors(stores.vectors_socket, Keys()) as vectors:
        await vectors.insert(ann, [indexed(said)])
        found = await vectors.search(ann, SearchQuery({"lexical": {"tea": 1.0}}, {}, 5))
    assert [c.id for c in found] == [said.id]


async def test_start_when_no_vectors_are_asked_for_then_only_valkey_runs_and_what_is_on_disk_stays(
    tmp_path: Path,
) -> None:
    ann, keys, said = subject(), Keys(), turn()
    async with opened(tmp_path, keys) as (_, vectors):
        await vectors.insert(ann, [indexed(said)])
    async with EmbeddedStores(tmp_path, None) as stores, redis(stores) as client:
        assert stores.states() == {"valkey": ChildState.UP, "vectors": ChildState.DOWN}
        assert len(processes_in(tmp_path)) == 1
        assert await client.ping()
    async with opened(tmp_path, keys) as (_, vectors):
        assert await vectors.get(ann, [said.id]) == [said]


async def test_start_when_the_append_only_file_is_damaged_then_the_error_ends_with_valkeys_words(
    tmp_path: Path,
) -> None:
    async with EmbeddedStores(tmp_path, DENSE) as stores, redis(stores) as client:
        for i in range(100):
            await client.set(f"k{i}", "v" * 50)
    (log,) = (tmp_path / "valkey" / "appendonlydir").glob("*.incr.aof")
    raw = bytearray(log.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 40] = os.urandom(40)
    log.write_bytes(raw)
    stores = EmbeddedStores(tmp_path, DENSE)
    with pytest.raises(ChildFailedError, match=r"(?s)valkey ended with 1:.*Bad file format"):
        await stores.__aenter__()
    assert processes_in(tmp_path) == []


async def test_start_when_a_killed_vacuum_left_segments_then_they_are_removed(tmp_path: Path) -> None:
    ann, keys, said = subject(), Keys(), turn()
    async with opened(tmp_path, keys) as (_, vectors):
        await vectors.insert(ann, [indexed(said)])
    left = tmp_path / "vectors" / "main" / "temp_segments"
    (left / "half").mkdir(parents=True, exist_ok=True)
    (left / "half" / "text").write_text("left over")
    async with opened(tmp_path, keys) as (_, vectors):
        assert not (left / "half").exists()
        assert await vectors.get(ann, [said.id]) == [said]


async def test_start_when_a_killed_first_start_left_half_a_shard_then_it_is_made_anew(tmp_path: Path) -> None:
    half = tmp_path / "vectors" / "shard.new" / "segments"
    half.mkdir(parents=True)
    async with EmbeddedStores(tmp_path, DENSE) as stores:
        assert stores.states() == UP
    assert not half.parent.exists()


async def test_children_when_started_then_they_do_not_see_the_servers_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORYOS_SECURITY__MASTER_KEY", "5ec2e7" * 8)
    async with EmbeddedStores(tmp_path, DENSE) as stores:
        seen = {part: environ(pid) for part, pid in stores.pids().items()}
    assert b"PATH=" in seen["vectors"]  # Valkey writes over its own
    assert not any(b"5ec2e7" in raw for raw in seen.values())


async def test_vectors_child_when_its_standard_input_ends_then_it_flushes_and_ends(tmp_path: Path) -> None:
    socket = runtime_dir(tmp_path).with_suffix(".sock")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "memoryos_server.stores.edge_process", "--directory", str(tmp_path), "--socket",
        str(socket), stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    await until(socket.exists)
    process.stdin.close()
    async with asyncio.timeout(5):
        assert await process.wait() == 0
    socket.unlink(missing_ok=True)
