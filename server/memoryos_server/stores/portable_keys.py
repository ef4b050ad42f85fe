"""Every key of a store, out and in, in a form that any Redis or Valkey takes.

`DUMP` and `RESTORE` would be shorter, but what one version dumps an older one refuses. Keys are read in pieces, so that a
large one never lies in memory as a whole. Whoever reads sees to it that nothing is written meanwhile.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.redis_client import Client

_OURS = re.compile(rb"\{(memoryos|p\d{3})\}:")
_SCANNED = 1000
_ELEMENTS = 256
_KINDS = ("string", "list", "set", "hash", "zset", "stream")
_MODULUS = 1 << 128


class PortableError(RuntimeError):
    """A key cannot be carried over; the message names it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a key; the parts of one key come behind each other.

    Attributes:
        name: The key.
        kind: Its type, as `TYPE` says it.
        first: Whether the key begins here.
        last: Whether it ends here.
        expires: Unix milliseconds at which it goes, 0 for never.
        items: A string's value; elements of a list; members of a set; field, value...; member, score...; of a stream
            id, field, value... per entry.
        newest: A stream's last id, which may be of an entry that is gone.
    """

    name: bytes
    kind: str
    first: bool
    last: bool
    expires: int
    items: list[Any]
    newest: bytes = b""

    def row(self) -> list[Any]:
        """What msgpack carries."""
        return [self.name, self.kind, self.first, self.last, self.expires, self.items, self.newest]

    @classmethod
    def of(cls, row: Sequence[Any]) -> Piece:
        """The piece that `row` gave."""
        return cls(*row)


def group_of(name: bytes) -> str:
    """What a key belongs to: `p000`..`p255`, or `memoryos` for what is the whole store's. "": it is not ours."""
    found = _OURS.match(name)
    return found[1].decode() if found else ""


async def key_names(client: Client) -> dict[str, list[bytes]]:
    """Our keys by what they belong to, each list in the order of names.

    Raises:
        BackendDown: The store does not answer.
    """
    found: dict[str, set[bytes]] = {}
    async with aclosing(client.names()) as pieces:
        async for names in pieces:
            for name in names:
                if group := group_of(name):
                    found.setdefault(group, set()).add(name)
    return {group: sorted(found[group]) for group in sorted(found)}


async def read_keys(client: Client, names: Iterable[bytes]) -> AsyncIterator[Piece]:
    """The pieces of keys; one that is gone has none.

    Raises:
        PortableError: A key is of a type that is not known.
        BackendDown: The store does not answer.
    """
    ordered = list(names)
    for start in range(0, len(ordered), _SCANNED):
        page = ordered[start : start + _SCANNED]
        kinds = await client.batch([("TYPE", name) for name in page])
        ends = await _expiries(client, page)
        for name, raw, expires in zip(page, kinds, ends, strict=True):
            kind = raw.decode() if isinstance(raw, bytes) else str(raw)
            if kind == "none" or expires == -2:
                continue
            if kind not in _KINDS:
                raise PortableError(f"the key {name!r} is of the type {kind}, which cannot be carried over")
            async for piece in _pieces(client, name, kind, max(expires, 0)):
                yield piece


async def write_pieces(client: Client, pieces: Sequence[Piece]) -> None:
    """Writes pieces; a key that begins takes the place of what there is under its name.

    Raises:
        BackendDown: The store does not answer, or cannot serve now.
    """
    commands: list[tuple[Any, ...]] = []
    for piece in pieces:
        if piece.first:
            commands.append(("DEL", piece.name))
        commands += _writes(piece)
        if piece.last and piece.expires:
            commands.append(("PEXPIREAT", piece.name, piece.expires))
    for start in range(0, len(commands), 512):
        await client.batch(commands[start : start + 512])


async def delete_keys(client: Client, names: Sequence[bytes]) -> None:
    """Deletes keys.

    Raises:
        BackendDown: The store does not answer.
    """
    for start in range(0, len(names), 512):
        await client.batch([("DEL", name) for name in names[start : start + 512]])


class Digest:
    """A number that says whether two sets of keys are equal, in whatever order they were read.

    Args:
        until: Unix milliseconds. A key that goes before that does not count: it may be gone on one side only.
    """

    def __init__(self, until: int = 0) -> None:
        self.count = 0
        self._until = until
        self._sum = 0
        self._elements = 0
        self._number = 0

    def add(self, piece: Piece) -> None:
        """Takes a piece; those of one key in their order."""
        if piece.first:
            self._elements = self._number = 0
        step = {"hash": 2, "zset": 2}.get(piece.kind, 1)
        ordered = piece.kind == "list"
        for at in range(0, len(piece.items), step):
            place = str(self._number).encode() if ordered else b""
            self._elements += _hashed(place, *_flat(piece.items[at : at + step]))
            self._number += 1
        if piece.last and not 0 < piece.expires < self._until:
            about = (piece.name, piece.kind.encode(), b"%d" % piece.expires, piece.newest, b"%d" % self._number)
            self._sum = (self._sum + _hashed(*about, b"%d" % (self._elements % _MODULUS))) % _MODULUS
            self.count += 1

    @property
    def value(self) -> str:
        """32 hex digits."""
        return f"{self._sum:032x}"


async def _expiries(client: Client, names: Sequence[bytes]) -> list[int]:
    """Unix milliseconds at which keys go, -1 for never, -2 for a key that is gone."""
    try:
        return [int(end) for end in await client.batch([("PEXPIRETIME", name) for name in names])]
    except BackendDown:
        raise
    except Exception:  # Redis before 7 does not know that command, and says so with a plain error
        now = int(time.time() * 1000)
        left = [int(one) for one in await client.batch([("PTTL", name) for name in names])]
        return [one if one < 0 else now + one for one in left]


async def _pieces(client: Client, name: bytes, kind: str, expires: int) -> AsyncIterator[Piece]:
    newest = b""
    if kind == "stream":
        newest = await _newest(client, name)
    held: list[Any] | None = None
    first = True
    async for items in _items(client, name, kind):
        if held is not None:
            yield Piece(name, kind, first, False, expires, held, newest)
            first = False
        held = items
    if held is not None or kind == "stream":  # anything else without elements went while it was read
        yield Piece(name, kind, first, True, expires, held or [], newest)


async def _newest(client: Client, name: bytes) -> bytes:
    about = await client.run("XINFO", "STREAM", name)
    if not isinstance(about, Mapping):
        about = dict(zip(about[::2], about[1::2], strict=True))
    found = about.get("last-generated-id", about.get(b"last-generated-id"))
    return found if isinstance(found, bytes) else str(found).encode()


async def _items(client: Client, name: bytes, kind: str) -> AsyncIterator[list[Any]]:
    if kind == "string":
        value = await client.run("GET", name)
        if value is not None:
            yield [value]
    elif kind == "list":
        at = 0
        while page := await client.run("LRANGE", name, at, at + _ELEMENTS - 1):
            yield list(page)
            at += len(page)
    elif kind == "zset":
        at = 0
        while page := await client.run("ZRANGE", name, at, at + _ELEMENTS - 1, "WITHSCORES"):
            yield list(page)
            at += len(page) // 2
    elif kind == "stream":
        start = "-"
        while page := await client.run("XRANGE", name, start, "+", "COUNT", _ELEMENTS):
            yield [[entry, *_flat(fields)] for entry, fields in page]
            start = "(" + page[-1][0].decode()
    else:
        # The store may give an element twice: each counts once.
        seen: set[bytes] = set()
        cursor: Any = 0
        command = "HSCAN" if kind == "hash" else "SSCAN"
        while True:
            cursor, found = await client.run(command, name, cursor, "COUNT", _ELEMENTS)
            items: list[Any] = []
            if kind == "hash":
                for field, value in found.items():
                    if field not in seen:
                        items += [field, value]
            else:
                items = [member for member in found if member not in seen]
            seen.update(found)
            if items:
                yield items
            if not int(cursor):
                return


def _writes(piece: Piece) -> list[tuple[Any, ...]]:
    name, items = piece.name, piece.items
    if piece.kind == "string":
        return [("SET", name, items[0])] if items else []
    if piece.kind == "stream":
        commands: list[tuple[Any, ...]] = [("XADD", name, entry, *fields) for entry, *fields in items]
        if piece.last:
            if piece.first and not items:
                # A stream that has been emptied is more than none: its ids go on from where they were.
                commands += [("XADD", name, piece.newest, "x", "x"), ("XDEL", name, piece.newest)]
            commands.append(("XSETID", name, piece.newest))
        return commands
    if not items:
        return []
    if piece.kind == "zset":
        pairs = [part for at in range(0, len(items), 2) for part in (items[at + 1], items[at])]
        return [("ZADD", name, *pairs)]
    return [({"list": "RPUSH", "set": "SADD", "hash": "HSET"}[piece.kind], name, *items)]


def _flat(items: Any) -> list[Any]:
    if isinstance(items, Mapping):
        return [part for pair in items.items() for part in pair]
    return [part for item in items for part in (item if isinstance(item, list) else [item])]


def _hashed(*parts: Any) -> int:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(b"%d:" % len(raw) + raw)
    return int.from_bytes(digest.digest())
