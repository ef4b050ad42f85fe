"""What of the Redis side belongs to the keyring, and what to content.

An old content backup is only ever used with the newest keyring. So whatever a later decision may take back lies in the
keyring: the wrapped keys of people, which an erasure destroys, and API keys, which a revocation ends; and the records of
erasures, which must outlive older content. Each person's epoch lies beside the key: content of an epoch that is over was
sealed with a key that is no more.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memoryos_server.stores.portable_keys import Piece
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import API_KEY_IDS, API_KEY_USES, API_KEYS, PARTITIONS, STORE_KEYRING, Partition

STORE_KEYS = frozenset(name.encode() for name in (STORE_KEYRING, API_KEYS, API_KEY_IDS, API_KEY_USES))
"""The keys of the whole store that the keyring has."""

_PARTITION_KEYRING = re.compile(rb"\{p\d{3}\}:(keyring|erasures|erasing)")
_SUBJECTS = re.compile(rb"\{p\d{3}\}:[a-z_]+:([0-9a-f]{32})(?::|$)")
_RECORD = re.compile(rb"\{p\d{3}\}:subject:([0-9a-f]{32})")
_LOOKUP = re.compile(rb"\{p\d{3}\}:lookup")
_PAGE = 256


@dataclass(frozen=True, slots=True)
class Person:
    """Who has a key.

    Attributes:
        id: The subject id.
        epoch: The epoch that the key seals.
        lookup: The keyed hash by which the person is found.
        who: The sealed identity.
        wrapped: The wrapped key.
    """

    id: str
    epoch: int
    lookup: bytes
    who: bytes
    wrapped: bytes

    def row(self) -> list[Any]:
        """What msgpack carries."""
        return [self.id, self.epoch, self.lookup, self.who, self.wrapped]


def erasure_keys() -> list[bytes]:
    """The keys of all partitions that records of erasures lie under."""
    partitions = [Partition(number) for number in range(PARTITIONS)]
    return [name.encode() for partition in partitions for name in (partition.erasures, partition.erasing)]


def in_keyring(name: bytes) -> bool:
    """Whether a key belongs to the keyring and never to content."""
    return name in STORE_KEYS or _PARTITION_KEYRING.fullmatch(name) is not None


async def people(client: Client, partition: Partition) -> AsyncIterator[list[Person]]:
    """Everybody of a partition who has a key, in pages.

    Raises:
        BackendDown: The store does not answer.
    """
    cursor: Any = 0
    while True:
        cursor, found = await client.run("HSCAN", partition.keyring, cursor, "COUNT", _PAGE)
        keys = list(found.items())
        records = await client.batch(
            [("HMGET", partition.subject(sid.decode()), "epoch", "lookup", "who") for sid, _ in keys]
        )
        yield [
            Person(sid.decode(), int(epoch), lookup, who, wrapped)
            for (sid, wrapped), (epoch, lookup, who) in zip(keys, records, strict=True)
            if epoch is not None and lookup is not None and who is not None
        ]
        if not int(cursor):
            return


async def add_people(client: Client, persons: Sequence[Person]) -> None:
    """Writes people with their keys; what content has of them besides stays.

    Raises:
        BackendDown: The store does not answer.
    """
    commands: list[tuple[Any, ...]] = []
    for person in persons:
        partition = Partition(int(person.id[:2], 16))
        commands.append(("HSET", partition.keyring, person.id, person.wrapped))
        commands.append(("HSET", partition.lookup, person.lookup, person.id))
        record = ("epoch", person.epoch, "lookup", person.lookup, "who", person.who)
        commands.append(("HSET", partition.subject(person.id), *record))
    await client.batch(commands)


def epoch_in(piece: Piece) -> tuple[str, int] | None:
    """The subject id and epoch that a piece of a subject's record says, else None."""
    found = _RECORD.fullmatch(piece.name)
    fields: Mapping[bytes, bytes] = dict(zip(piece.items[::2], piece.items[1::2], strict=True)) if found else {}
    return (found[1].decode(), int(fields[b"epoch"])) if found and b"epoch" in fields else None


def kept(piece: Piece, over: frozenset[str] | set[str]) -> Piece | None:
    """What is left of a piece of content without the people whose keys are no more; None: nothing."""
    if in_keyring(piece.name):
        return None
    if (found := _SUBJECTS.match(piece.name)) and found[1].decode() in over:
        return None
    if _LOOKUP.fullmatch(piece.name):
        pairs = zip(piece.items[::2], piece.items[1::2], strict=True)
        return replace(piece, items=[part for field, sid in pairs if sid.decode() not in over for part in (field, sid)])
    return piece
