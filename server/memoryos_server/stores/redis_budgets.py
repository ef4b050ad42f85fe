"""What keys with a budget have used of it, on the Redis side: one hash a key, the same for all servers."""

from __future__ import annotations

import math
import os
from datetime import date

from memoryos_server.domain.core.caller import Budget
from memoryos_server.domain.ports.usage import Refusal
from memoryos_server.stores.manifest import Manifest
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.scope import partition_of

_EPOCH = date(1970, 1, 1)
_KEPT_SECONDS = 2 * 86_400
_NONCE = 8

_ADMIT = Script(
    "admit_request",
    """
    -- KEYS a key's budget. ARGV requests a minute or 0, tokens a day or 0, tokens that wait to be written, nonce, seconds that
    -- this is kept. Gives nothing if the request may go on, else which bound is reached and the seconds to wait, as texts.
    -- Requests of the last sixty seconds are those of this minute and, of those of the minute before, the share that overlaps.
    local found = redis.call('HMGET', KEYS[1], 'minute', 'requests', 'before', 'day', 'tokens', 'nonce')
    if found[6] == ARGV[4] then return {} end
    local most, tokens_most = tonumber(ARGV[1]), tonumber(ARGV[2])
    local time = redis.call('TIME')
    local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
    local minute, day = math.floor(now / 60), math.floor(now / 86400)
    local known, requests, before = tonumber(found[1] or '0'), 0, 0
    if known == minute then
      requests, before = tonumber(found[2]), tonumber(found[3])
    elseif known == minute - 1 then
      before = tonumber(found[2])
    end
    local tokens = 0
    if tonumber(found[4] or '0') == day then tokens = tonumber(found[5]) end
    if tokens_most > 0 and tokens + tonumber(ARGV[3]) >= tokens_most then
      return {'tokens', tostring((day + 1) * 86400 - now)}
    end
    local share = now / 60 - minute
    if most > 0 and before * (1 - share) + requests >= most then
      local wait
      if requests < most then
        wait = 1 - (most - requests) / before - share
      else
        wait = 1 - share + 1 - most / requests
      end
      return {'requests', tostring(wait * 60)}
    end
    redis.call('HSET', KEYS[1], 'minute', minute, 'requests', requests + 1, 'before', before, 'nonce', ARGV[4])
    redis.call('EXPIRE', KEYS[1], ARGV[5])
    return {}
    """,
)

_SPEND = Script(
    "spend_budget",
    """
    -- KEYS a key's budget. ARGV writer's field, number of its batch, day, tokens, seconds that this is kept.
    local last = redis.call('HGET', KEYS[1], ARGV[1])
    if last and tonumber(last) >= tonumber(ARGV[2]) then return 0 end
    local day = tonumber(redis.call('HGET', KEYS[1], 'day') or '0')
    if day < tonumber(ARGV[3]) then redis.call('HSET', KEYS[1], 'day', ARGV[3], 'tokens', 0) end
    if day <= tonumber(ARGV[3]) then redis.call('HINCRBY', KEYS[1], 'tokens', ARGV[4]) end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[5])
    return 1
    """,
)

SCRIPTS = (_ADMIT, _SPEND)


class RedisBudgets:
    """The port `BudgetStore`."""

    def __init__(self, client: Client, manifest: Manifest) -> None:
        self._client = client
        self._secrets = manifest.secrets

    async def admit(self, key_id: str, budget: Budget, waiting: int) -> Refusal | None:
        """Counts a request, unless a bound is reached.

        Raises:
            BackendDown: The store does not answer.
        """
        args: list[str | bytes | int] = [budget.requests_per_minute, budget.tokens_per_day, waiting]
        answer = await self._client.script(_ADMIT, [self._key(key_id)], [*args, os.urandom(_NONCE), _KEPT_SECONDS])
        if not answer:
            return None
        return Refusal(answer[0].decode(), max(1, math.ceil(float(answer[1]))))

    async def spend(self, writer: str, batch: int, key_id: str, day: date, tokens: int) -> None:
        """Counts tokens of a day; a batch given again counts once.

        Raises:
            BackendDown: The store does not answer.
        """
        number = (day - _EPOCH).days
        await self._client.script(_SPEND, [self._key(key_id)], [f"={writer}", batch, number, tokens, _KEPT_SECONDS])

    def _key(self, key_id: str) -> str:
        return partition_of(self._secrets.hash("budget", key_id)).budget(key_id)
