"""What chats cost, on the Redis side: one hash a tenant and day, which goes by itself when its time is over.

It holds ids of keys and names of models in clear, and no person: an erasure has nothing to look for here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from datetime import date
from itertools import islice
from typing import Any

from memoryos_server.domain.core.tokens import OTHER
from memoryos_server.domain.ports.usage import Spent, Usage
from memoryos_server.stores.manifest import Manifest
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.scope import partition_of, usage_tenants

MOST_FIELDS = 5_000
"""Pairs of key and model that a tenant's day holds; of further ones the model is `other`."""

_ROWS = 200
"""So many rows are written by one script."""

_EPOCH = date(1970, 1, 1)
_DAY = 86_400
_NUMBERS = len(astuple(Spent()))

_ADD = Script(
    "add_usage",
    """
    -- KEYS a tenant's day. ARGV writer's field, number of its batch, Unix seconds at which the day goes, most fields, the
    -- name of other models, how many numbers a row has; then per row: key id, model, numbers.
    local last = redis.call('HGET', KEYS[1], ARGV[1])
    if last and tonumber(last) >= tonumber(ARGV[2]) then return 0 end
    local numbers = tonumber(ARGV[6])
    for i = 7, #ARGV, numbers + 2 do
      local field = ARGV[i] .. ' ' .. ARGV[i + 1]
      local old = redis.call('HGET', KEYS[1], field)
      if not old and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
        field = ARGV[i] .. ' ' .. ARGV[5]
        old = redis.call('HGET', KEYS[1], field)
      end
      local sums = {}
      for number in string.gmatch(old or '', '%d+') do sums[#sums + 1] = tonumber(number) end
      for k = 1, numbers do sums[k] = (sums[k] or 0) + tonumber(ARGV[i + 1 + k]) end
      for k = 1, #sums do sums[k] = string.format('%.0f', sums[k]) end
      redis.call('HSET', KEYS[1], field, table.concat(sums, ' '))
    end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('EXPIREAT', KEYS[1], ARGV[3])
    return 1
    """,
)

SCRIPTS = (_ADD,)


class RedisUsage:
    """The port `UsageStore`.

    Args:
        client: The connection.
        manifest: The opened store.
        days: How long after its end a day is kept.
        most: `MOST_FIELDS`.
    """

    def __init__(self, client: Client, manifest: Manifest, *, days: int, most: int = MOST_FIELDS) -> None:
        self._client = client
        self._secrets = manifest.secrets
        self._days = days
        self._most = most

    async def add(self, writer: str, batch: int, usage: Sequence[Usage]) -> None:
        """Adds to what is kept; a batch given again counts once.

        Raises:
            BackendDown: The store does not answer; a part may be written.
        """
        places: dict[tuple[date, str], list[Usage]] = {}
        for one in usage:
            places.setdefault((one.day, one.tenant_id), []).append(one)
        for (day, tenant_id), rows in places.items():
            ends = (_number(day) + 1 + self._days) * _DAY
            index = usage_tenants(_number(day))
            await self._client.batch([("SADD", index, tenant_id), ("EXPIREAT", index, ends)], atomic=True)
            key = self._key(tenant_id, day)
            for piece, some in enumerate(_pieces(rows)):
                # Of one writer a later piece has a higher number than an earlier one, and any of a later batch has.
                number = batch * 1_000 + piece
                args: list[str | bytes | int] = [f"={writer}", number, ends, self._most, OTHER, _NUMBERS]
                for row in some:
                    args += [row.key_id, row.model, *astuple(row.spent)]
                await self._client.script(_ADD, [key], args)

    async def tenants(self, day: date) -> list[str]:
        """The tenants of which something is kept of a day, in order.

        Raises:
            BackendDown: The store does not answer.
        """
        return sorted(name.decode() for name in await self._client.run("SMEMBERS", usage_tenants(_number(day))))

    async def read(self, tenant_id: str, days: Sequence[date]) -> list[Usage]:
        """What is kept of a tenant's days, in no order.

        Raises:
            BackendDown: The store does not answer.
        """
        hashes = await self._client.batch([("HGETALL", self._key(tenant_id, day)) for day in days])
        return [
            Usage(day, tenant_id, key_id, model, _spent(value))
            for day, found in zip(days, hashes, strict=True)
            for field, value in _pairs(found)
            if not field.startswith(b"=")
            for key_id, _, model in (field.decode().partition(" "),)
        ]

    def _key(self, tenant_id: str, day: date) -> str:
        hashed = self._secrets.hash("usage", tenant_id)
        return partition_of(hashed).usage(hashed, _number(day))


def _pieces(rows: Sequence[Usage]) -> Iterator[list[Usage]]:
    left = iter(rows)
    while some := list(islice(left, _ROWS)):
        yield some


def _number(day: date) -> int:
    return (day - _EPOCH).days


def _spent(value: bytes) -> Spent:
    return Spent(*map(int, value.split()[:_NUMBERS]))


def _pairs(found: Any) -> Iterator[tuple[bytes, bytes]]:
    # As redis-py gives it to a command, and as it does to some of many.
    if isinstance(found, Mapping):
        return iter(found.items())
    return zip(found[::2], found[1::2], strict=True)
