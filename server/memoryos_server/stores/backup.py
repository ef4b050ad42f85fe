"""A backup of the embedded stores while they run.

The searchable side is read first, the ledger's side after it, and no entry of the ledger ends in between: so whatever the
first lacks is open in the second, and is done again by whoever starts on what is restored. The other order would lose what
ended in between, or keep what nobody knows of.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from memoryos_server.stores.backup_file import BackupError, BackupReader, BackupWriter
from memoryos_server.stores.embedded import SCRATCH, EmbeddedStores
from memoryos_server.stores.heads import SignedHeads
from memoryos_server.stores.keyring_parts import STORE_KEYS, epoch_in, erasure_keys, in_keyring, people
from memoryos_server.stores.manifest import SCHEMA
from memoryos_server.stores.portable_keys import Piece, key_names, read_keys
from memoryos_server.stores.portable_points import EdgePoints
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import PARTITIONS, Partition
from memoryos_server.stores.snapshot import dumped, served

CONTENT, KEYRING = "content backup", "keyring backup"
"""What the two files say that they are."""

KEYRING_NAME = "keyring.tar"
_STEP = 4096
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Backups:
    """Makes backups of open embedded stores.

    Attributes:
        stores: The processes.
        redis: The Redis side.
        held: Begins a time in which no entry of the ledger ends.
        still: Begins a time in which nothing is moved into the archive.
        heads: The signed heads of the audit chains.
    """

    stores: EmbeddedStores
    redis: RedisStore
    held: Callable[[], AbstractAsyncContextManager[None]]
    still: Callable[[], AbstractAsyncContextManager[None]]
    heads: SignedHeads
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def make(self, to: Path, *, keyring_only: bool = False) -> AsyncGenerator[dict[str, Any], None]:
        """Writes content and keyring; how far it is, and at the end `content`, `keyring`, `bytes` and `counts`.

        Args:
            to: A directory, or the content's file, whose name ends with `.tar`; the keyring lies beside it.
            keyring_only: Only the keyring: after people were erased, say.

        Raises:
            BackupError: The place cannot be used, or another store's keyring lies there.
            BackendDown: A store does not answer.
        """
        if self._one.locked():
            raise BackupError("another backup is being made: try again once it is complete")
        async with self._one, aclosing(self._make(to, keyring_only)) as steps:
            async for step in steps:
                yield step

    async def _make(self, to: Path, keyring_only: bool) -> AsyncGenerator[dict[str, Any], None]:
        now = datetime.now(UTC)
        content = to if to.suffix == ".tar" else to / f"content-{now:%Y%m%dT%H%M%S.%f}Z.tar"
        keyring = content.with_name(KEYRING_NAME)
        if content.name == KEYRING_NAME:
            raise BackupError(f"{content} is the keyring's name: give the content another")
        facts = {
            "version": version("memoryos"),
            "schema": SCHEMA,
            "partitions": PARTITIONS,
            "store": self.redis.manifest.store_id,
            "master_key": self.redis.manifest.master.id,
            "created_at": now.isoformat().replace("+00:00", "Z"),
        }
        try:
            # A keyring of another store would be lost.
            await asyncio.to_thread(_check_place, content, keyring, facts["store"])
            scratch = self.stores.data_dir / SCRATCH
            done: dict[str, Any] = {"done": True, "keyring": str(keyring)}
            async with AsyncExitStack() as stack:
                if keyring_only:
                    await dumped(self.redis.client, self.stores.data_dir / "valkey", scratch)
                    copy = await stack.enter_async_context(served(scratch, self.stores.redis_socket.parent))
                else:
                    out = stack.enter_context(BackupWriter(content))
                    async with self.still():
                        async with self.held():
                            async for step in self._points(out):
                                yield step
                            # Before the chains are, which may then be longer, never shorter than was signed.
                            await _whole(self._heads, out)
                            await dumped(self.redis.client, self.stores.data_dir / "valkey", scratch)
                        await _whole(self._archives, out)
                    copy = await stack.enter_async_context(served(scratch, self.stores.redis_socket.parent))
                    async for step in _content(copy, out):
                        yield step
                ring = stack.enter_context(BackupWriter(keyring))
                await _keyring(copy, ring)

                def finish() -> None:
                    if not keyring_only:
                        manifest = out.finish({"kind": CONTENT, **facts})
                        done.update(content=str(content), bytes=content.stat().st_size, counts=manifest["rows"])
                    # Last: with content that was never completed the keyring of before is as good.
                    ring.finish({"kind": KEYRING, **facts})

                await _whole(finish)
        except OSError as error:
            raise BackupError(f"the backup cannot be written to {to}: {error.strerror or error}") from error
        yield done

    def _heads(self, out: BackupWriter) -> None:
        if files := self.heads.files():
            out.add("heads", [list(one) for one in files.items()], 300 * len(files))

    def _archives(self, out: BackupWriter) -> None:
        for path in sorted((self.stores.data_dir / "archive").rglob("*.archive")):
            out.copy(path.relative_to(self.stores.data_dir).as_posix(), path)

    async def _points(self, out: BackupWriter) -> AsyncGenerator[dict[str, Any], None]:
        async with EdgePoints(self.stores.vectors_socket) as points:
            there = await points.collections()
            total, done = sum(count for count, _ in there.values()), 0
            for name, (_, sizes) in there.items():
                out.add(f"collections/{name}", [[name, sizes]], 100)
                async for rows in points.read(name):
                    size = sum(len(row[1].get("t", "")) + 14 * len(row[2]) + 1600 * len(row[4]) for row in rows)
                    await _whole(out.add, f"points/{name}", rows, size)
                    done += len(rows)
                    yield {"stage": "points", "at": done, "of": max(total, done)}


async def _content(copy: Client, out: BackupWriter) -> AsyncGenerator[dict[str, Any], None]:
    groups = await key_names(copy)
    wanted = [name for names in groups.values() for name in names if not in_keyring(name)]
    for start in range(0, len(wanted), _STEP):
        batch: list[Piece] = []
        async for piece in read_keys(copy, wanted[start : start + _STEP]):
            batch.append(piece)
            if len(batch) == 64:
                await _write(out, batch)
                batch = []
        await _write(out, batch)
        yield {"stage": "keys", "at": min(start + _STEP, len(wanted)), "of": len(wanted)}


async def _write(out: BackupWriter, pieces: list[Piece]) -> None:
    rows = [piece.row() for piece in pieces]
    epochs = [list(found) for piece in pieces if (found := epoch_in(piece))]
    await _whole(out.add, "keys", rows, sum(map(_size, pieces)))
    if epochs:
        await _whole(out.add, "epochs", epochs, 50 * len(epochs))


async def _keyring(copy: Client, out: BackupWriter) -> None:
    async for piece in read_keys(copy, [*sorted(STORE_KEYS), *erasure_keys()]):
        out.add("keys", [piece.row()], _size(piece))
    for number in range(PARTITIONS):
        async for persons in people(copy, Partition(number)):
            if persons:
                await _whole(out.add, "people", [one.row() for one in persons], 250 * len(persons))


async def _whole(work: Callable[..., _T], *arguments: Any) -> _T:
    """Runs it in a thread and sees it end, also when it is cancelled: what it writes to is closed only then."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await running
        raise


def _size(piece: Piece) -> int:
    def one(item: Any) -> int:
        return sum(map(one, item)) if isinstance(item, list) else len(item) if isinstance(item, bytes) else 8

    return one(piece.items) + len(piece.name) + 32


def _check_place(content: Path, keyring: Path, store: object) -> None:
    if content.exists():
        raise BackupError(f"{content} is there already: give another name")
    if keyring.exists():
        other = BackupReader(keyring, KEYRING).manifest
        if other["store"] != store:
            raise BackupError(
                f"{keyring} is the keyring of another store, which would be lost: back up into another directory"
            )
