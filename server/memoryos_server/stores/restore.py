"""A backup made a data directory again.

Both files are checked as a whole first. Then a directory is filled beside the one that is wanted, by the processes that will
serve it, and takes its name when it is complete: a restore that was cut off leaves the old one, or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.backup import CONTENT, KEYRING, KEYRING_NAME
from memoryos_server.stores.backup_file import BackupError, BackupReader, sync
from memoryos_server.stores.embedded import ChildFailedError, EmbeddedStores, owned
from memoryos_server.stores.keyring import KeyringError, MasterKeys
from memoryos_server.stores.keyring_parts import Person, add_people, kept
from memoryos_server.stores.manifest import SCHEMA
from memoryos_server.stores.portable_keys import Piece, write_pieces
from memoryos_server.stores.portable_points import EdgePoints, subject_of
from memoryos_server.stores.redis_client import Client, socket_url
from memoryos_server.stores.scope import PARTITIONS, STORE_KEYRING

_ROWS = 128


async def restore(
    source: Path, keyring: Path | None, data_dir: Path, keys: MasterKeys, *, force: bool = False
) -> AsyncGenerator[dict[str, Any], None]:
    """Makes a data directory of a backup; how far it is, and at the end what was restored.

    Args:
        source: The content's file, or the directory of backups, whose newest content is taken.
        keyring: The keyring's file; None: `keyring.tar` beside the content.
        data_dir: Where to.
        keys: Where master keys come from.
        force: Whether a directory that holds something may be replaced; it is kept under another name.

    Raises:
        BackupError: The backup cannot be used, or the directory cannot be replaced; nothing was written.
        DataDirectoryInUseError: A server runs on the directory.
    """
    path = await asyncio.to_thread(newest, source)
    content = await asyncio.to_thread(BackupReader, path, CONTENT)
    ring = await asyncio.to_thread(BackupReader, keyring or path.with_name(KEYRING_NAME), KEYRING)
    await asyncio.to_thread(_check, content, ring, keys)
    data_dir, there = _place(data_dir)
    if there and not force:
        raise BackupError(
            f"the data directory {data_dir} is not empty: give another with --data-dir, or --force to replace it (what it"
            " holds is kept under another name)"
        )
    async with owned(data_dir) if data_dir.exists() else contextlib.nullcontext():
        aside = data_dir.with_name(f".{data_dir.name}.restoring")
        shutil.rmtree(aside, ignore_errors=True)
        done: dict[str, Any] = {"done": True, "data_dir": str(data_dir), "content": str(path)}
        try:
            aside.mkdir(mode=0o700)
            async for step in _fill(aside, content, ring, done):
                yield step
            done["archives"] = await asyncio.to_thread(content.extract, "archive/", aside / "archive")
            with contextlib.suppress(FileNotFoundError):
                (aside / "lock").unlink()
            if there:
                old = data_dir.with_name(f"{data_dir.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S}")
                data_dir.rename(old)
                done["replaced"] = str(old)
            elif data_dir.exists():
                shutil.rmtree(data_dir)  # empty but for its lock, which we hold
            aside.rename(data_dir)
            sync(data_dir.parent)
        except OSError as error:
            raise BackupError(f"{data_dir} cannot be written: {error.strerror or error}") from error
        except (ChildFailedError, BackendDown) as error:
            raise BackupError(f"the backup could not be restored: {error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        yield done


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


def _place(data_dir: Path) -> tuple[Path, bool]:
    """Where the data directory is, with a parent, and whether it holds something."""
    data_dir = data_dir.absolute()
    try:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        if data_dir.is_mount():
            raise BackupError(
                f"{data_dir} is a mount point, which cannot be replaced: use a directory in it as data_dir"
            )
        return data_dir, data_dir.exists() and any(name != "lock" for name in os.listdir(data_dir))
    except OSError as error:
        raise BackupError(f"{data_dir} cannot be used: {error.strerror or error}") from error


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
