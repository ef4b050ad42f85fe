"""Moving house: everything that one pair of stores holds, into another pair.

Points are copied in the order of ids and keys partition by partition; how far it is stands at the target, so that a move
that was cut off goes on where it was, and whatever is done twice gives the same. Both ends are compared at the end, and only
then the target becomes a store: until that, no server starts on it. Nothing may write to either end meanwhile.
"""

from __future__ import annotations

import array
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.manifest import SCHEMA
from memoryos_server.stores.portable_keys import Digest, Piece, delete_keys, key_names, read_keys, write_pieces
from memoryos_server.stores.portable_points import PointDigest, PortablePoints, Row
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import MANIFEST, MIGRATION, STORE_KEYRING

_WHOLE = "memoryos"
_STEP_ROWS = 1024
_PIECES = 64
_SOON_MILLIS = 3_600_000
_CLOSE = 0.002
"""How far two numbers of a vector may lie apart: engines keep half or single precision, and normalise."""


class MigrationError(RuntimeError):
    """A move cannot begin or go on, or its ends differ; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """One end of a move.

    Attributes:
        name: For messages.
        client: Its Redis side.
        points: Its searchable side.
        keys: Where a server that is started on it looks for the master key; None: that is not looked at.
    """

    name: str
    client: Client
    points: PortablePoints
    keys: MasterKeys | None = None


async def migrate(source: Place, target: Place) -> AsyncGenerator[dict[str, Any], None]:
    """Copies everything, compares both ends and hands the target over; how far it is, and at the end the counts.

    Raises:
        MigrationError: The target holds something else, or differs from the source in the end.
        KeyringError: A server could not open the target: the master key is not where it would look.
        BackendDown: A store does not answer; the same move goes on from there.
    """
    store, resumed = await _examined(source, target)
    if not resumed:
        await target.client.run("HSET", MIGRATION, "from", store)
    done = {field.decode(): value.decode() for field, value in (await _cursor(target)).items()}
    groups = await key_names(source.client)
    total = sum(map(len, groups.values()))
    async for step in _copy_points(source, target, done):
        yield step
    there = await key_names(target.client)
    at = 0
    for group, names in groups.items():
        at += len(names)
        if group == _WHOLE or done.get(f"keys:{group}"):
            continue
        await delete_keys(target.client, there.get(group, []))
        await _copy_keys(source, target, names)
        await target.client.run("HSET", MIGRATION, f"keys:{group}", "all")
        reach("move.keys")
        yield {"stage": "keys", "at": at, "of": total}
    stale = [name for group, names in there.items() if group not in groups and group != _WHOLE for name in names]
    await delete_keys(target.client, stale)  # what has expired at the source since it was copied
    async for step in _compare_points(source, target):
        yield step
    compared = await _compare_keys(source, target, groups)
    whole = [name for name in groups.get(_WHOLE, []) if name not in (MIGRATION.encode(), MANIFEST.encode())]
    await _copy_keys(source, target, whole)
    await _copy_keys(source, target, [MANIFEST.encode()])  # from here on it is a store
    await target.client.run("DEL", MIGRATION)
    collections = await target.points.collections()
    yield {
        "done": True,
        "resumed": resumed,
        "keys": compared + len(whole) + 1,
        "points": {name: count for name, (count, _) in collections.items()},
        "master_key": ((await source.client.run("HGET", STORE_KEYRING, "master_key")) or b"").decode(),
    }


async def survey(source: Place, target: Place | None) -> dict[str, Any]:
    """What a move would do, in the form of the last that `migrate` gives. Writes nothing.

    Args:
        source: Whence.
        target: Whither; None: it is not there, and thus empty.

    Raises:
        MigrationError, KeyringError, BackendDown: As `migrate`.
    """
    _, resumed = await _examined(source, target)
    return {
        "done": True,
        "dry_run": True,
        "resumed": resumed,
        "keys": sum(map(len, (await key_names(source.client)).values())),
        "points": {name: count for name, (count, _) in (await source.points.collections()).items()},
        "master_key": ((await source.client.run("HGET", STORE_KEYRING, "master_key")) or b"").decode(),
    }


async def _examined(source: Place, target: Place | None) -> tuple[bytes, bool]:
    """Sees that the ends fit; what tells the source's store from others, and whether a move of it goes on."""
    facts = await source.client.batch(
        [("HGET", MANIFEST, "schema"), ("HGET", STORE_KEYRING, "secret"), ("HGET", STORE_KEYRING, "master_key")]
    )
    if None in facts:
        if await source.client.run("EXISTS", MIGRATION):
            raise MigrationError(
                f"{source.name} is itself the target of a move that is not complete: complete that first"
            )
        raise MigrationError(f"{source.name} holds no store")
    if int(facts[0]) > SCHEMA:
        raise MigrationError(
            f"{source.name} has schema {int(facts[0])}, this version writes {SCHEMA}: move it with the version that wrote it"
        )
    if target is not None and target.keys is not None:
        target.keys.get(facts[2].decode())
    # The wrapped secret is a store's own, and tells nothing.
    store = hashlib.blake2b(facts[1], digest_size=16).hexdigest().encode()
    if target is None:
        return store, False
    known = await target.client.run("HGET", MIGRATION, "from")
    if known == store:
        return store, True
    if known is not None:
        raise MigrationError(f"{target.name} holds a part of another store: empty it, or complete that move")
    held = await key_names(target.client)
    points = sum(count for count, _ in (await target.points.collections()).values())
    if held or points:
        raise MigrationError(
            f"{target.name} is not empty ({sum(map(len, held.values())):,} keys, {points:,} points): a move needs an empty"
            " target"
        )
    return store, False


async def _cursor(target: Place) -> Mapping[bytes, bytes]:
    found: Mapping[bytes, bytes] = await target.client.run("HGETALL", MIGRATION)
    return found


async def _copy_points(source: Place, target: Place, done: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
    there = await source.points.collections()
    total, at = sum(count for count, _ in there.values()), 0
    for name, (count, sizes) in there.items():
        cursor, _, copied = done.get(f"points:{name}", "").partition(" ")
        if cursor == "all":
            at += count
            continue
        written, here = 0, int(copied or 0)
        at += here
        await target.points.write(name, sizes, [])
        async for rows in source.points.read(name, cursor):
            await target.points.write(name, sizes, rows)
            at, written, here = at + len(rows), written + len(rows), here + len(rows)
            if written >= _STEP_ROWS:
                written = 0
                await target.points.flush()  # the cursor never says more than is durable
                await target.client.run("HSET", MIGRATION, f"points:{name}", f"{rows[-1][0]} {here}")
                reach("move.points")
            yield {"stage": "points", "at": min(at, total), "of": total}
        await target.points.flush()
        await target.client.run("HSET", MIGRATION, f"points:{name}", "all")


async def _copy_keys(source: Place, target: Place, names: Sequence[bytes]) -> None:
    batch: list[Piece] = []
    async for piece in read_keys(source.client, names):
        batch.append(piece)
        if len(batch) == _PIECES:
            await write_pieces(target.client, batch)
            batch = []
    await write_pieces(target.client, batch)


async def _compare_keys(source: Place, target: Place, groups: Mapping[str, Sequence[bytes]]) -> int:
    soon = int(time.time() * 1000) + _SOON_MILLIS
    there = await key_names(target.client)
    compared = 0
    for group in sorted((groups.keys() | there.keys()) - {_WHOLE}):
        ends = []
        for place, names in ((source, groups.get(group, ())), (target, there.get(group, ()))):
            digest = Digest(soon)
            async for piece in read_keys(place.client, names):
                digest.add(piece)
            ends.append((digest.count, digest.value))
        if ends[0] != ends[1]:
            raise await _differs(target, f"keys:{group}", f"the keys of {group}", ends[0][0], ends[1][0])
        compared += ends[0][0]
    return compared


async def _compare_points(source: Place, target: Place) -> AsyncIterator[dict[str, Any]]:
    ours, theirs = await source.points.collections(), await target.points.collections()
    total, at = sum(count for count, _ in ours.values()), 0
    for name in sorted(ours.keys() | theirs.keys()):
        digests = []
        for place, known in ((source, ours), (target, theirs)):
            digest = PointDigest()
            if name in known:
                async for rows in place.points.read(name):
                    for row in rows:
                        digest.add(row)
                    at += len(rows)
                    yield {"stage": "comparing", "at": at // 2, "of": total}
            digests.append(digest.found)
        if digests[0] == digests[1]:
            continue
        counts = [{corpus: count for corpus, (count, _) in found.items()} for found in digests]
        if counts[0] != counts[1] or not await _close(source.points, target.points, name):
            numbers = [sum(found.values()) for found in counts]
            raise await _differs(target, f"points:{name}", f"the points of {name}", numbers[0], numbers[1])


async def _differs(target: Place, cursor: str, what: str, ours: int, theirs: int) -> MigrationError:
    await target.client.run("HDEL", MIGRATION, cursor)  # so that it is copied again
    return MigrationError(
        f"{what} differ in the end ({ours:,} and {theirs:,}): did a server write meanwhile? Stop it and run the same move"
        " again, which copies them anew"
    )


async def _close(ours: PortablePoints, theirs: PortablePoints, name: str) -> bool:
    """Whether two collections are equal but for the last bits of their vectors."""
    mine, other = _rows(ours, name), _rows(theirs, name)
    async for row in mine:
        found = await anext(other, None)
        if found is None or list(row[:4]) != list(found[:4]) or row[4].keys() != found[4].keys():
            return False
        for vector, raw in row[4].items():
            numbers = [array.array("f", one) for one in (raw, found[4][vector])]
            if len(numbers[0]) != len(numbers[1]):
                return False
            if any(abs(a - b) > _CLOSE for a, b in zip(*numbers, strict=True)):
                return False
    return await anext(other, None) is None


async def _rows(points: PortablePoints, name: str) -> AsyncIterator[Row]:
    async for rows in points.read(name):
        for row in rows:
            yield row
