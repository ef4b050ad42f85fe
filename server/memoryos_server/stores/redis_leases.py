"""Who may work on a partition: leases with fencing tokens.

A lease ends by the store's clock. Nobody has to notice in time that it ended: whatever its holder writes carries the
token, and the token is another one as soon as somebody else has the partition.
"""

from __future__ import annotations

import os

from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.ports import Lease
from memoryos_server.stores import redis_marks
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.scope import Partition

_CLAIM = Script(
    "claim",
    redis_marks.LUA
    + """
    -- KEYS lease. ARGV holder, milliseconds. Gives the token, 0 if another has it. A token is never given twice, also where a
    -- fail-over has lost the claim that had it: hence never behind the clock.
    local time = now()
    local lease = redis.call('HMGET', KEYS[1], 'holder', 'token', 'until')
    local token = tonumber(lease[2])
    if lease[1] ~= ARGV[1] then
      if lease[1] and lease[1] ~= '' and tonumber(lease[3]) > time then return 0 end
      token = math.max((token or 0) + 1, time)
      redis.call('HSET', KEYS[1], 'token', string.format('%.0f', token))
    end
    redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', time + tonumber(ARGV[2]))
    return token
    """,
)

_RELEASE = Script(
    "release",
    """
    -- KEYS lease. ARGV token. What its holder may still have under way is fenced off as well.
    if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
    redis.call('HINCRBY', KEYS[1], 'token', 1)
    redis.call('HSET', KEYS[1], 'holder', '', 'until', 0)
    return 1
    """,
)

SCRIPTS = (_CLAIM, _RELEASE)


class Leases:
    """The part of the port `Queue` that gives out partitions. Each instance is one holder.

    Args:
        client: The connection.
        holder: Its name; "": one of its own. A process that is known to be alone keeps one name over its restarts, so that
            it need not wait for the leases of its own former life.
    """

    def __init__(self, client: Client, holder: str = "") -> None:
        self._client = client
        self._holder = holder or os.urandom(8).hex()
        self._tokens: dict[int, int] = {}

    async def claim(self, partition: int, seconds: float) -> Lease | None:
        """The right to work on a partition, or None if another process has it. Its holder renews it, with its token."""
        keys = [Partition(partition).lease]
        token = int(await self._client.script(_CLAIM, keys, [self._holder, max(1, int(seconds * 1000))]))
        if not token:
            self._tokens.pop(partition, None)
            return None
        self._tokens[partition] = token
        return Lease(partition, token)

    async def release(self, lease: Lease) -> None:
        """Gives a partition back. Idempotent; a lease that somebody else has meanwhile stays his."""
        self._tokens.pop(lease.partition, None)
        await self._client.script(_RELEASE, [Partition(lease.partition).lease], [lease.token])

    def held(self, partition: int) -> Lease | None:
        """The lease that this holder was last given and has not given back. It may have ended: writes find out."""
        token = self._tokens.get(partition)
        return None if token is None else Lease(partition, token)


def lease_lost() -> Stale:
    """The fault of a write whose lease is over."""
    return Stale("Another process has the partition now")
