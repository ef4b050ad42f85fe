"""Ids that make a call recognisable when it is sent again."""

from __future__ import annotations

import os
import time
import uuid


def new_id() -> str:
    """A new UUIDv7: ids made later sort later."""
    stamp = time.time_ns() // 1_000_000
    number = (stamp & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=number))
