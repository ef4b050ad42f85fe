"""A backup made a data directory again.

Both files are checked as a whole first. Then a directory is filled beside the one that is wanted, by the processes that will
serve it, and takes its name when it is complete: a restore that was cut off leaves the old one, or none. An empty directory
that is there already, which may be a mount point, is filled from a directory in it, which is gone when all is in place:
until then no server starts on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.backup import CONTENT, KEYRING, KEYRING_NAME
from memoryos_server.stores.backup_file import BackupError, BackupReader, sync
from memoryos_server.stores.embedded import RESTORING, ChildFailedError, EmbeddedStores, owned
from memoryos_server.stores.heads import directory_of, put_back
from memoryos_server.stores.keyring import KeyringError, MasterKeys
from memoryos_server.stores.keyring_parts import Person, add_people, kept
from memoryos_server.stores.manifest import SCHEMA
from memoryos_server.stores.portable_keys import Piece, write_pieces
from memoryos_server.stores.portable_points import EdgePoints, subject_of
from memoryos_server.stores.redis_client import Client, socket_url
from memoryos_server.stores.scope import PARTITIONS, STORE_KEYRING

_ROWS = 128
_NOTHING = {"lock", "lost+found"}
"""What an empty data directory may hold: the file of its lock, and what a file system begins with."""


async def restore(
    source: Path, keyring: Path | None, data_dir: Path, keys: MasterKeys, key_dir: str | Path, *, force: bool = False
) -> AsyncGenerator[dict[str, Any], None]:
    """Makes a data directory of a backup; how far it is, and at the end what was restored.

    Args:
        source: The content's file, or the directory of backups, whose newest content is taken.
        keyring: The keyring's file; None: `keyring.tar` beside the content.
        data_dir: Where to.
        keys: Where master keys come from.
        key_dir: Where the signed heads of audit chains are kept; those that are there are kept under another name.
        force: Whether a directory that holds something may be replaced; it is kept under another name.

    Raises:
        BackupError: The backup cannot be used, another restore runs, or the directory cannot be replaced; nothing was
            written.
        DataDirectoryInUseError: A server runs on the directory.
    """
    path = await asyncio.to_thread(newest, source)
    content = await asyncio.to_thread(BackupReader, path, CONTENT)
    ring = await asyncio.to_thread(BackupReader, keyring or path.with_name(KEYRING_NAME), KEYRING)
    await asyncio.to_thread(_check, content, ring, keys)
    data_dir = _absolute(data_dir)
    done: dict[str, Any] = {"done": True, "data_dir": str(data_dir), "content": str(path)}
    try:
        os.makedirs(data_dir.parent, exist_ok=True)
        async with _target(data_dir, force=force, done=done) as fresh:
            async for step in _fill(fresh, content, ring, done):
                yield step
            done["archives"] = await asyncio.to_thread(content.extract, "archive/", fresh / "archive")
            with contextlib.suppress(FileNotFoundError):
                (fresh / "lock").unlink()
        heads = {name: raw for part in content.parts("heads") for name, raw in part} if content.series("heads") else {}
        await asyncio.to_thread(put_back, directory_of(key_dir, str(content.manifest["store"])), heads)
    except OSError as error:
        raise BackupError(f"{data_dir} cannot be written: {error.strerror or error}") from error
    except (ChildFailedError, BackendDown) as error:
        raise BackupError(f"the backup could not be restored: {error}") from error
    yield done


def _absolute(path: Path) -> Path:
    return path.absolute()


@contextlib.asynccontextmanager
async def _target(data_dir: Path, *, force: bool, done: dict[str, Any]) -> AsyncIterator[Path]:
    """An empty directory to fill; what is in it is the data directory's once the block has ended well.

    Raises:
        BackupError: The data directory cannot be replaced, or another restore runs.
        DataDirectoryInUseError: A server runs on it, or a restore into it.
        OSError: It cannot be made.
    """
    if _found(data_dir, force=force) == _Found.EMPTY:
        async with owned(data_dir):
            _found(data_dir)  # another restore may have been faster
            async with _within(data_dir) as fresh:
                yield fresh
        return
    with _alone(data_dir.with_name(f".{data_dir.name}.restoring"), data_dir) as aside:
        there = _found(data_dir, force=force) != _Found.NOTHING
        async with owned(data_dir) if there else contextlib.nullcontext():
            yield aside
            if there:
                old = data_dir.with_name(f"{data_dir.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S}")
                os.rename(data_dir, old)
                done["replaced"] = str(old)
            os.rename(aside, data_dir)
            sync(data_dir.parent)


class _Found(Enum):
    """What is in the place of the data directory."""

    NOTHING = "nothing"
    EMPTY = "an empty directory, or one with what a restore that was cut off left: all there is in that is its own"
    REPLACEABLE = "something that may be replaced"


def _found(data_dir: Path, *, force: bool = False) -> _Found:
    """Looks at the place of the data directory.

    Raises:
        BackupError: It holds something that may not be replaced.
    """
    try:
        names = set(os.listdir(data_dir))
    except FileNotFoundError:
        return _Found.NOTHING
    if RESTORING in names or names <= _NOTHING:
        return _Found.EMPTY
    if not force:
        raise BackupError(
            f"the data directory {data_dir} is not empty: give another with --data-dir, or --force to replace it (what it"
            " holds is kept under another name)"
        )
    if data_dir.is_mount():
        raise BackupError(
            f"{data_dir} is a mount point, which cannot be replaced, and is not empty: empty it, or use a directory in it"
            " as data_dir"
        )
    return _Found.REPLACEABLE


@contextlib.asynccontextmanager
async def _within(data_dir: Path) -> AsyncIterator[Path]:
    """A directory in the data directory, all that is in which goes up into it at the end."""
    fresh = data_dir / RESTORING
    if fresh.exists():  # whatever is here is of the restore that made it
        await asyncio.to_thread(_clear, data_dir)
    fresh.mkdir(mode=0o700)
    sync(data_dir)
    try:
        yield fresh
        for one in sorted(fresh.iterdir()):
            one.rename(data_dir / one.name)
        sync(data_dir)
    except BaseException:
        _clear(data_dir)
        raise
    fresh.rmdir()
    sync(data_dir)


def _clear(data_dir: Path) -> None:
    # The directory that says what all of this is comes last.
    for one in sorted(data_dir.iterdir(), key=lambda one: one.name == RESTORING):
        if one.name in _NOTHING:
            continue
        if one.is_dir():
            shutil.rmtree(one)
        else:
            one.unlink()


@contextlib.contextmanager
def _alone(aside: Path, data_dir: Path) -> Iterator[Path]:
    """An empty directory that no other restore has; gone at the end, if it still has its name.

    Raises:
        BackupError: Another restore has it.
    """
    aside.mkdir(mode=0o700, exist_ok=True)
    held = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(held), os.stat(aside))
        except (BlockingIOError, FileNotFoundError):
            mine = False  # the other one is at work, or has just ended
        if not mine:
            raise BackupError(f"another restore into {data_dir} is under way: wait until it has ended")
        try:
            for left in aside.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield aside
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held), os.stat(aside)):
                    shutil.rmtree(aside, ignore_errors=True)
    finally:
        os.close(held)


def newest(source: Path) -> Path:
    """The content's file: `source` itself, or the newest in that directory.

    Raises:
        BackupError: There is none.
    """
    if not source.is_dir():
        return source
    found = sorted(path for path in source.glob("content-*.tar"))
    if not found:
        raise BackupError(f"there is no content-*.tar in {source}: name the content's file with --from")
    return found[-1]


def _check(content: BackupReader, ring: BackupReader, keys: MasterKeys) -> None:
    for backup in (content, ring):
        schema, partitions = backup.manifest["schema"], backup.manifest["partitions"]
        if schema > SCHEMA:
            raise BackupError(
                f"{backup.path} has schema {schema}, this version writes {SCHEMA}: restore it with the version that made it"
                f" ({backup.manifest['version']}) or a later one"
            )
        if partitions != PARTITIONS:
            raise BackupError(f"{backup.path} has {partitions} partitions, this version {PARTITIONS}")
    if content.manifest["store"] != ring.manifest["store"]:
        raise BackupError(f"{ring.path} is not the keyring of {content.path}: give its own with --keyring")
    if ring.manifest["created_at"] < content.manifest["created_at"]:
        raise BackupError(
            f"{ring.path} is older than {content.path}: whoever came in between would be unreadable; give the newest"
            " keyring with --keyring"
        )
    for part in ring.parts("keys"):
        for piece in map(Piece.of, part):
            if piece.name == STORE_KEYRING.encode():
                fields = dict(zip(piece.items[::2], piece.items[1::2], strict=True))
                try:
                    keys.get(fields[b"master_key"].decode()).unwrap("store", "store", fields[b"secret"])
                except KeyringError as error:
                    raise BackupError(f"{error} (a backup never holds the master key)") from None
                return
    raise BackupError(f"{ring.path} has no store key: give another keyring")


async def _fill(
    directory: Path, content: BackupReader, ring: BackupReader, done: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    persons = {one[0]: Person(*one) for part in ring.parts("people") for one in part}
    epochs = {sid: epoch for part in content.parts("epochs") for sid, epoch in part} if content.series("epochs") else {}
    over = {sid for sid, epoch in epochs.items() if sid not in persons or persons[sid].epoch != epoch}
    total, at = content.rows, 0
    points = skipped = keys = 0
    async with EmbeddedStores(directory, {}) as stores, EdgePoints(stores.vectors_socket) as engine:
        client = Client(socket_url(stores.redis_socket))
        try:
            for series in content.series("collections/"):
                [[name, sizes]] = [row for part in content.parts(series) for row in part]
                wanted = 0
                async for rows in _pages(content, f"points/{name}"):
                    mine = [row for row in rows if (sid := subject_of(row)) in epochs and sid not in over]
                    await engine.write(name, sizes, mine)
                    wanted += len(mine)
                    at += len(rows)
                    skipped += len(rows) - len(mine)
                    yield {"stage": "points", "at": at, "of": total}
                await engine.write(name, sizes, [])
                if (counted := (await engine.collections())[name][0]) != wanted:
                    raise BackupError(f"{wanted} points went into {name}, but it holds {counted}; nothing was restored")
                points += wanted if name == "main" else 0
            await engine.flush()
            async for rows in _pages(content, "keys"):
                pieces = [left for row in rows if (left := kept(Piece.of(row), over)) is not None]
                await write_pieces(client, pieces)
                keys += sum(piece.first for piece in pieces)
                at += len(rows)
                yield {"stage": "keys", "at": at, "of": total}
            # After content: a person who was erased and came back has a record of today's epoch.
            async for rows in _pages(ring, "people"):
                await add_people(client, [Person(*row) for row in rows])
            async for rows in _pages(ring, "keys"):
                await write_pieces(client, [Piece.of(row) for row in rows])
        finally:
            await client.aclose()
    done |= {"points": points, "keys": keys, "people": len(persons), "erased": len(over), "points_left_out": skipped}


async def _pages(backup: BackupReader, series: str) -> AsyncIterator[list[Any]]:
    parts = backup.parts(series)
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        for start in range(0, len(part), _ROWS):
            yield part[start : start + _ROWS]
