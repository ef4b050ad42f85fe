"""Which turns wait to be part of a segment, and when it is time for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Lease, Subject
from memoryos_server.stores.keyring import KeyringError
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_leases import lease_lost
from memoryos_server.stores.redis_marks import raw_id, text_id
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import PARTITIONS, Partition
from memoryos_server.stores.sealing import SealBroken

log = logging.getLogger(__name__)

_DUE_PAGE = 256
_DAMAGED_WAIT = 3600

LUA = """
    local function rewrite(list, kept)
      redis.call('DEL', list)
      for i = 1, #kept, 1000 do redis.call('RPUSH', list, unpack(kept, i, math.min(i + 999, #kept))) end
    end
    local function without(list, gone)
      local kept, lost = {}, false
      for _, id in ipairs(redis.call('LRANGE', list, 0, -1)) do
        if gone[id] then lost = true else kept[#kept + 1] = id end
      end
      if lost then rewrite(list, kept) end
      return #kept
    end
"""
"""What scripts that take turns off the fresh list begin with."""

_CONSOLIDATED = Script(
    "consolidated",
    LUA
    + """
    -- KEYS lease, record, fresh, due. ARGV token, subject id, epoch, next due or '', idle due, then memory ids.
    if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
    if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[3] then return 1 end
    local gone = {}
    for i = 6, #ARGV do gone[ARGV[i]] = true end
    if without(KEYS[3], gone) == 0 then
      redis.call('ZREM', KEYS[4], ARGV[2])
    elseif ARGV[4] ~= '' then
      redis.call('ZADD', KEYS[4], ARGV[4], ARGV[2])
    else
      -- Turns that came while segments were made: they keep the time that is set for them.
      redis.call('ZADD', KEYS[4], 'NX', ARGV[5], ARGV[2])
    end
    return 1
    """,
)

_FORGET_DUE = Script(
    "forget_due",
    """
    -- KEYS keyring, due. ARGV subject id. Whoever was made again meanwhile stays.
    if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
    return redis.call('ZREM', KEYS[2], ARGV[1])
    """,
)

SCRIPTS = (_CONSOLIDATED, _FORGET_DUE)


class FreshTurns:
    """The part of the port `Queue` that knows what waits to be consolidated.

    Args:
        client: The connection.
        subjects: Who is known.
        idle_seconds: How long after its last turn a conversation is over.
    """

    def __init__(self, client: Client, subjects: RedisSubjects, *, idle_seconds: int) -> None:
        self._client = client
        self._subjects = subjects
        self._idle = idle_seconds

    @property
    def idle_seconds(self) -> int:
        """How long after its last turn a conversation is over."""
        return self._idle

    async def due_partitions(self, now: datetime) -> list[int]:
        """The partitions in which `due` finds somebody."""
        until = now.timestamp()
        counts = await self._client.batch(
            [("ZCOUNT", Partition(number).due, "-inf", until) for number in range(PARTITIONS)]
        )
        return [number for number, count in enumerate(counts) if count]

    async def due(self, partition: int, now: datetime) -> list[Subject]:
        """Subjects whose fresh turns are due for consolidation, the longest due first, a page of them."""
        place = Partition(partition)
        ids = await self._client.run("ZRANGEBYSCORE", place.due, "-inf", now.timestamp(), "LIMIT", 0, _DUE_PAGE)
        found = []
        for raw in ids:
            try:
                subject = await self._subjects.by_id(raw.decode())
            except (SealBroken, KeyringError) as error:
                log.error("turns of a person wait to be consolidated, whose key does not open: %s", error)
                await self._client.run("ZADD", place.due, "XX", now.timestamp() + _DAMAGED_WAIT, raw)
                continue
            if subject is None:
                await self._client.script(_FORGET_DUE, [place.keyring, place.due], [raw])
            else:
                found.append(subject)
        return found

    async def fresh(self, subject: Subject) -> list[str]:
        """The memory ids of turns that are stored but in no segment yet, oldest first."""
        scope = await self._subjects.scope(subject)
        return [text_id(raw) for raw in await self._client.run("LRANGE", scope.fresh, 0, -1)]

    async def consolidated(
        self, lease: Lease, subject: Subject, memory_ids: Sequence[str], next_due: datetime | None
    ) -> None:
        """Takes turns off the fresh list, once segments that hold them are durable.

        What is left is due at `next_due`; without one, turns that came meanwhile keep the time that is set for them.
        An epoch that is over changes nothing.

        Raises:
            Stale: Somebody else has the partition now. Nothing was written.
        """
        partition = Partition(lease.partition)
        keys = [partition.lease, partition.subject(subject.id), partition.fresh(subject.id), partition.due]
        idle = utc_now().timestamp() + self._idle
        args: list[str | bytes | int] = [lease.token, subject.id, subject.epoch]
        args += [str(next_due.timestamp()) if next_due else "", str(idle), *map(raw_id, memory_ids)]
        if not await self._client.script(_CONSOLIDATED, keys, args):
            raise lease_lost()
