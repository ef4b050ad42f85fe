"""What the tests of the Redis side share."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.core.time import from_unix
from memoryos_server.domain.ports import Entry, Lease, Settlement, Subject, Turn
from memoryos_server.stores.manifest import Expected
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import socket_url
from memoryos_server.stores.scope import Partition
from tests.valkeys import ValkeyProcess

EXPECTED = Expected(analysis="1")

Connect = Callable[..., AbstractAsyncContextManager[RedisStore]]
"""Opens one more replica's view of the store."""


class Valkey(ValkeyProcess):
    """A real server on a unix socket, with the durability of the embedded store."""

    def __init__(self, directory: Path, *options: str) -> None:
        super().__init__(directory, *options)
        # A socket's path is limited to some 100 bytes, pytest's directories are longer.
        self._short = Path(tempfile.mkdtemp(prefix="mos-"))
        self.socket = self._short / "s"

    @property
    def url(self) -> str:
        return socket_url(self.socket)

    def start(self) -> None:
        process = self.run("--port", "0", "--unixsocket", str(self.socket))
        until = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < until, "valkey-server does not start"
            assert process.poll() is None, "valkey-server ended"
            time.sleep(0.01)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._short)

    def raw(self) -> bytes:
        """All bytes of its append-only files."""
        return b"".join(path.read_bytes() for path in sorted(self.directory.rglob("*")) if path.is_file())

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(1)
            try:
                peer.connect(os.fspath(self.socket))
                peer.sendall(b"PING\r\n")
                return peer.recv(16) == b"+PONG\r\n"
            except OSError:
                return False


def said(subject: Subject, event_id: str, content: str = "I live in Oslo", **other: str) -> Turn:
    """A turn of a subject."""
    return Turn(
        id=derived_uuid(subject.tenant_id, subject.id, event_id),
        event_id=event_id,
        session_id=other.get("session_id", "s-1"),
        role=other.get("role", "user"),
        name=other.get("name", ""),
        content=content,
        timestamp=from_unix(1_770_000_000.123456),
    )


async def open_entries(store: RedisStore) -> list[Entry]:
    """Every open entry of every partition."""
    return [entry for number in sorted(await store.queue.backlog()) async for entry in store.queue.open_entries(number)]


async def lease_of(store: RedisStore, subject: Subject, seconds: float = 60.0) -> Lease:
    """The lease of a subject's partition, which nobody else has."""
    lease = await store.queue.claim(subject.partition, seconds)
    assert lease is not None
    return lease


async def settle_all(store: RedisStore, subject: Subject, **how: Any) -> None:
    """Ends every open entry of a subject in one way."""
    lease = await lease_of(store, subject)
    entries = [entry async for entry in store.queue.open_entries(subject.partition)]
    mine = [entry for entry in entries if entry.subject == subject]
    await store.queue.settle(lease, [Settlement(entry, **how) for entry in mine])


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 5.0) -> None:
    """Returns once something holds; fails if it does not in time."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # what is awaited lies in another process
            await asyncio.sleep(0.005)


async def erase(store: RedisStore, subject: Subject) -> None:
    """What an erasure does first: the epoch is raised and the key destroyed, behind every cache's back."""
    partition = Partition(subject.partition)
    await store.client.run("HINCRBY", partition.subject(subject.id), "epoch", 1)
    await store.client.run("HDEL", partition.keyring, subject.id)


@asynccontextmanager
async def losing_answers(valkey: Valkey) -> AsyncIterator[tuple[str, Callable[[int], None]]]:
    """A link to the store that lets commands through and can break before a script's answer comes back."""
    losses = 0
    serving: set[asyncio.Task[None]] = set()

    def lose(times: int) -> None:
        nonlocal losses
        losses = times

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal losses
        up_reader, up_writer = await asyncio.open_unix_connection(valkey.socket)
        scripted = False

        async def down() -> None:
            nonlocal losses
            while data := await up_reader.read(65536):
                if losses and scripted:
                    losses -= 1
                    break
                writer.write(data)
                await writer.drain()

        answers = asyncio.create_task(down())
        answers.add_done_callback(lambda _: writer.close())
        try:
            while data := await reader.read(1 << 20):
                scripted = b"EVAL" in data
                up_writer.write(data)
                await up_writer.drain()
        except ConnectionError:
            pass  # whoever lost an answer went away
        finally:
            up_writer.close()
            answers.cancel()
            await asyncio.wait([answers])

    path = valkey.socket.with_name("link")
    server = await asyncio.start_unix_server(begin, path)
    async with server:
        yield socket_url(path), lose
    for task in serving:
        task.cancel()
    if serving:
        await asyncio.wait(serving)
