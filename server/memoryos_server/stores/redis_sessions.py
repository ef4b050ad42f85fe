"""The list of a subject's conversations: a hash of what is known of each, and their order by last activity."""

from __future__ import annotations

import base64
import binascii
import logging
import struct
from datetime import UTC, datetime, timedelta

from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.ports import Session
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import Scope
from memoryos_server.stores.sealing import SealBroken, Sealer

log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_HEAD = struct.Struct(">Iqq")
_CURSOR = struct.Struct(">q16s")

LUA = """
    local function count_session(hash, order, field, turns, first, last, sealed)
      local known = redis.call('HGET', hash, field)
      if known then
        local n, since, till = struct.unpack('>I4i8i8', known)
        turns, first, last = n + turns, math.min(since, first), math.max(till, last)
        sealed = string.sub(known, 21)
      end
      redis.call('HSET', hash, field, struct.pack('>I4i8i8', turns, first, last) .. sealed)
      redis.call('ZADD', order, last, field)
    end
    local function uncount_session(hash, order, field, turns)
      local known = redis.call('HGET', hash, field)
      if not known then return end
      local n = struct.unpack('>I4', known) - turns
      if n > 0 then
        redis.call('HSET', hash, field, struct.pack('>I4', n) .. string.sub(known, 5))
      else
        redis.call('HDEL', hash, field)
        redis.call('ZREM', order, field)
      end
    end
"""
"""What scripts that count turns of sessions begin with."""


def millis(time: datetime) -> int:
    """A time as Unix milliseconds."""
    return (time - _EPOCH) // _MILLISECOND


def seal_session(sealer: Sealer, field: bytes, session_id: str) -> bytes:
    """A session's id as it is stored under its field."""
    return sealer.seal(_record_id(field), session_id.encode())


async def list_sessions(
    client: Client, scope: Scope, sealer: Sealer, after: str, limit: int
) -> tuple[list[Session], str]:
    """Conversations, last active first, from behind the cursor `after`, and the next cursor.

    One that becomes active while pages are read moves to the front, and may be missing from the pages to come.

    Raises:
        Invalid: `after` is no cursor.
        BackendDown: The store does not answer.
    """
    if limit < 1:
        return [], after
    score, behind = _cursor(after) if after else (None, b"")
    found: list[tuple[bytes, int]] = []
    # One more than asked for tells whether there are more. Members of one score come in reverse order of their bytes.
    offset, highest = 0, "+inf" if score is None else str(score)
    while len(found) <= limit:
        count = limit + 1
        page = await client.run("ZREVRANGEBYSCORE", scope.active, highest, "-inf", "WITHSCORES", "LIMIT", offset, count)
        pairs = [(field, int(float(at))) for field, at in _pairs(page)]
        found += [(field, at) for field, at in pairs if at != score or field < behind]
        offset += count
        if len(pairs) < count:
            break
    more, found = len(found) > limit, found[:limit]
    stored = await client.run("HMGET", scope.sessions, *(field for field, _ in found)) if found else []
    sessions = [
        session
        for (field, _), value in zip(found, stored, strict=True)
        if value is not None and (session := _session(sealer, field, value)) is not None
    ]
    return sessions, _token(*found[-1]) if more else ""


def _session(sealer: Sealer, field: bytes, stored: bytes) -> Session | None:
    turns, first, last = _HEAD.unpack_from(stored)
    try:
        name = sealer.open(_record_id(field), stored[_HEAD.size :]).decode()
    except SealBroken:
        log.warning("a session's name cannot be opened; it is left out of the list")
        return None
    return Session(name, turns, _EPOCH + first * _MILLISECOND, _EPOCH + last * _MILLISECOND)


def _record_id(field: bytes) -> str:
    return f"session:{field.hex()}"


def _pairs(page: list[object]) -> list[tuple[bytes, bytes]]:
    if page and isinstance(page[0], tuple | list):
        return [(item[0], item[1]) for item in page]  # type: ignore[index]
    return list(zip(page[::2], page[1::2], strict=True))  # type: ignore[arg-type]


def _token(field: bytes, at: int) -> str:
    return base64.urlsafe_b64encode(_CURSOR.pack(at, field)).decode().rstrip("=")


def _cursor(token: str) -> tuple[int, bytes]:
    try:
        at, field = _CURSOR.unpack(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, struct.error, ValueError):
        raise Invalid("This is no page token of the list of sessions", param="page_token") from None
    return at, field
