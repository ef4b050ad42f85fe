"""The chain of a tenant's recorded events: what links one to the one before.

Each link's hash covers the hash before it, its number, its place in the outbox and the bytes that are stored: what is sealed
counts as ciphertext. So whatever is changed, taken out, put in or moved is seen by whoever adds up again, without any key,
and a person whose key is destroyed leaves the chain as it was. Must not know of stores or files.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

HASH_BYTES = 32
"""The length of a link's hash."""

_AHEAD = struct.Struct(">QI").pack
_SIZE = struct.Struct(">I").pack


class Taken(NamedTuple):
    """An event that is to be chained.

    Attributes:
        partition: In whose outbox it lay; None: in none.
        entry: Its id there, `<milliseconds>-<number>`; else when it is written, in the same form.
        event: The record.
        who: Who it is about, sealed.
    """

    partition: int | None
    entry: str
    event: bytes
    who: bytes

    @property
    def at(self) -> tuple[int, int]:
        """When it was written, milliseconds of the store's clock, and which of that moment."""
        millis, _, number = self.entry.partition("-")
        return int(millis), int(number or 0)

    @property
    def source(self) -> str:
        """Its place in the outbox, as a link keeps it."""
        return f"-/{self.entry}" if self.partition is None else f"{self.partition:03d}/{self.entry}"


class Link(NamedTuple):
    """A chained event.

    Attributes:
        number: Its number in the chain, from 1.
        source: Its place in the outbox, `<partition>/<entry>`; `-/<entry>` if it lay in none.
        event: The record.
        who: Who it is about, sealed.
        hash: What the chain adds up to with it.
    """

    number: int
    source: str
    event: bytes
    who: bytes
    hash: bytes

    @property
    def millis(self) -> int:
        """When it was written, milliseconds of the store's clock, or of the server's if it lay in no outbox; 0: damaged."""
        written = self.source.partition("/")[2].partition("-")[0]
        return int(written) if written.isascii() and written.isdigit() else 0

    def follows(self, before: bytes) -> bool:
        """Whether its hash is what `before` and it add up to."""
        return self.hash == added(before, self.number, self.source, self.event, self.who)


def beginning(tenant_id: str) -> bytes:
    """What the chain of a tenant adds up to before its first event: no two tenants' chains can be exchanged."""
    return hashlib.sha256(b"memoryos audit chain\0" + tenant_id.encode()).digest()


def added(before: bytes, number: int, source: str, event: bytes, who: bytes) -> bytes:
    """What a chain adds up to with one more event."""
    place = source.encode()
    parts = (before, _AHEAD(number, len(place)), place, _SIZE(len(event)), event, _SIZE(len(who)), who)
    return hashlib.sha256(b"".join(parts)).digest()


def linked(count: int, before: bytes, events: list[Taken]) -> list[Link]:
    """The links of further events of a chain.

    Args:
        count: How many it has.
        before: What it adds up to.
        events: The events, in the order in which they are to stand.
    """
    links = []
    for number, taken in enumerate(events, count + 1):
        source = taken.source
        before = added(before, number, source, taken.event, taken.who)
        links.append(Link(number, source, taken.event, taken.who, before))
    return links
