"""Ids that sort by time, and ids that follow from what they name."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from datetime import UTC, datetime

SHOWN_ID = "shown_id"
"""The member of a record's data that says under which id it is shown, if it is kept under an alias."""

_ALIAS_BITS = 40


_RANDOM_AT_ONCE = 256
_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""A random digit -> the two bits of the variant, and two of its own."""
_random: list[str] = []
"""What stands behind the time in UUIDs that are still to be made; each is used once."""
os.register_at_fork(after_in_child=_random.clear)


def uuid7() -> str:
    """A new UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, the rest random."""
    stamp = f"{time.time_ns() // 1_000_000:012x}"
    try:
        rest = _random.pop()
    except IndexError:
        rest, *more = _rests_of_uuid7()
        _random.extend(more)
    return f"{stamp[:8]}-{stamp[8:]}-{rest}"


def _rests_of_uuid7() -> list[str]:
    """Version, variant, and 74 random bits, as UUIDs have them. Every call makes ids, and asking the system costs most of it."""
    digits = os.urandom(10 * _RANDOM_AT_ONCE).hex()
    texts = [digits[at : at + 20] for at in range(0, len(digits), 20)]
    return [f"7{text[:3]}-{_VARIANTS[text[3]]}{text[4:7]}-{text[7:19]}" for text in texts]


def made_at(made: str) -> datetime:
    """When a UUIDv7 was made, UTC."""
    return datetime.fromtimestamp((uuid.UUID(made).int >> 80) / 1000, UTC)


def derived_uuid(*parts: str) -> str:
    """The UUID (version 8, RFC 9562) that follows from `parts`: the same parts always give the same id.

    Parts are length-prefixed before hashing, so that no part can run over into the next.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(4) + raw)
    value = int.from_bytes(digest.digest())
    value = value & ~(0xF << 76) | 0x8 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def alias(subject_id: str, record_id: str) -> str:
    """The id under which a subject's record is kept whose own id is taken in another tenant.

    Its first 88 bits are those of the id, so that records are in one order under both.

    Raises:
        ValueError: The id is no UUID.
    """
    digest = hashlib.blake2b(f"{subject_id}/{record_id}".encode(), digest_size=_ALIAS_BITS // 8).digest()
    low = (1 << _ALIAS_BITS) - 1
    return str(uuid.UUID(int=uuid.UUID(record_id).int & ~low | int.from_bytes(digest, "big")))


def kept_ids(subject_id: str, memory_id: str) -> list[str]:
    """The ids under which what a subject knows by an id may be kept: that id, and its alias."""
    try:
        return [memory_id, alias(subject_id, memory_id)]
    except ValueError:
        return [memory_id]
