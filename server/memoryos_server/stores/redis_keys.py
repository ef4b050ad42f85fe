"""API keys on the Redis side: keyed hashes, with sealed records.

All keys lie in one slot, since making or revoking one changes record and list together, and there are few of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import orjson

from memoryos_server.domain.core.faults import BackendDown, Exists, Stale
from memoryos_server.domain.core.patience import in_a_hurry
from memoryos_server.domain.core.time import from_unix
from memoryos_server.domain.ports import ApiKey
from memoryos_server.stores.manifest import Manifest
from memoryos_server.stores.redis_cache import Cache
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.scope import API_KEY_IDS, API_KEY_USES, API_KEYS, CHANGES

KIND = "apikey"
"""The kind of message that says that a key is revoked, or has another end than before."""

_USE_SECONDS = 60
_ID_PREFIX = "key_"

_FIND = Script(
    "find_api_key",
    """
    -- KEYS keys, ids, uses. ARGV hash, Unix seconds, least seconds between two records of use.
    local record = redis.call('HGET', KEYS[1], ARGV[1])
    if not record then return {} end
    local id = string.match(record, '^[^ ]+')
    local used = redis.call('HGET', KEYS[3], id)
    if not used or tonumber(ARGV[2]) - tonumber(used) >= tonumber(ARGV[3]) then
      -- A store that cannot write now still knows its keys: hence pcall.
      redis.pcall('HSET', KEYS[3], id, ARGV[2])
      used = ARGV[2]
    end
    return {record, used}
    """,
)

_CREATE = Script(
    "create_api_key",
    """
    -- KEYS keys, ids, uses. ARGV hash, id, record. Sent again with the same record, it says 1 again.
    local there = redis.call('HGET', KEYS[1], ARGV[1])
    if there then return there == ARGV[3] and 1 or 0 end
    if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return 0 end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
    redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
    return 1
    """,
)

_REVOKE = Script(
    "revoke_api_key",
    """
    -- KEYS keys, ids, uses. ARGV hash or '', id or '', channel, kind of message, ids of which one must be there.
    local hash = ARGV[1]
    if hash == '' then hash = redis.call('HGET', KEYS[2], ARGV[2]) end
    if not hash then return {} end
    -- Said even if the key is gone already: a call sent again must reach everybody too.
    redis.call('PUBLISH', ARGV[3], ARGV[4] .. ' ' .. hash)
    local record = redis.call('HGET', KEYS[1], hash)
    if not record then return {} end
    local there = #ARGV == 4
    for i = 5, #ARGV do there = there or redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 end
    if not there then return {'alone'} end
    local id = string.match(record, '^[^ ]+')
    local used = redis.call('HGET', KEYS[3], id)
    redis.call('HDEL', KEYS[1], hash)
    redis.call('HDEL', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
    return {record, used or '', hash}
    """,
)

_LOOK = Script(
    "look_up_api_key",
    """
    -- KEYS keys, ids, uses. ARGV hash or '', id or ''.
    local hash = ARGV[1]
    if hash == '' then hash = redis.call('HGET', KEYS[2], ARGV[2]) end
    local record = hash and redis.call('HGET', KEYS[1], hash)
    if not record then return {} end
    return {record, redis.call('HGET', KEYS[3], string.match(record, '^[^ ]+')) or '', hash}
    """,
)

_ROTATE = Script(
    "rotate_api_key",
    """
    -- KEYS keys, ids, uses. ARGV channel, kind of message, old hash, old id, old record as it was, as it is to be or '',
    -- new hash, new id, new record. Sent again, it says 1 again.
    if redis.call('HGET', KEYS[1], ARGV[7]) ~= ARGV[9] then
      if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[5] then return 0 end
      redis.call('HSET', KEYS[1], ARGV[7], ARGV[9])
      redis.call('HSET', KEYS[2], ARGV[8], ARGV[7])
      if ARGV[6] == '' then
        redis.call('HDEL', KEYS[1], ARGV[3])
        redis.call('HDEL', KEYS[2], ARGV[4])
        redis.call('HDEL', KEYS[3], ARGV[4])
      else
        redis.call('HSET', KEYS[1], ARGV[3], ARGV[6])
      end
    end
    redis.call('PUBLISH', ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
    return 1
    """,
)

_LIST = Script("list_api_keys", "return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[3])}")

SCRIPTS = (_FIND, _CREATE, _REVOKE, _LOOK, _ROTATE, _LIST)
KEYS = (API_KEYS, API_KEY_IDS, API_KEY_USES)


class RedisApiKeys:
    """The ports `ApiKeys` and `KeyStore`.

    A seen key is cached for at most a minute, while changes of other replicas are heard; while they are not, every look
    goes to the store. While the store is down a cached key keeps working. Whether a key is expired is for the caller to
    check, at every use.

    Args:
        client: The connection.
        manifest: The opened store.
        live: Whether changes of other replicas are heard.
        capacity: The most keys cached.
        fresh_seconds: How long a cached key needs no second look.
        now: Unix seconds.
    """

    def __init__(
        self,
        client: Client,
        manifest: Manifest,
        live: Callable[[], bool],
        *,
        capacity: int = 4096,
        fresh_seconds: float = 60.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._secrets = manifest.secrets
        # Every call asks for that of its key. Of known keys only: others may be of any length and number, and are no one's to keep.
        self._known_digest = lru_cache(capacity)(self._digest)
        self._live = live
        self._now = now
        self._cache: Cache[str, ApiKey] = Cache(capacity, min(fresh_seconds, 60.0))

    async def find(self, key: str) -> ApiKey | None:
        """The record of a key, or None. An expired key has one too.

        Raises:
            BackendDown: The key is not cached and the store does not answer.
        """
        digest = self._digest(key)
        cached = self._cache.get(digest)
        if cached and cached[1] and self._live():
            return cached[0]
        generation = self._cache.generation
        try:
            # One that is known is not waited for while the store seems to hang.
            with in_a_hurry() if cached else nullcontext():
                answer = await self._client.script(_FIND, KEYS, [digest, int(self._now()), _USE_SECONDS])
        except BackendDown:
            if cached:
                return cached[0]
            raise
        if not answer:
            if cached:
                self._cache.drop(digest)
            return None
        record = self._open(digest, answer[0], answer[1])
        self._cache.put(digest, record, generation)
        return record

    def held(self, key: str) -> ApiKey | None:
        """As `find`, of a key that was found before, if no store need be asked for it; else None."""
        cached = self._cache.get(self._known_digest(key))
        return cached[0] if cached and cached[1] and self._live() else None

    def seen(self, key: str) -> ApiKey | None:
        """The record of a key as it was found last, or None; it may have been revoked since."""
        cached = self._cache.get(self._digest(key))
        return cached[0] if cached else None

    async def create(self, key: str, record: ApiKey) -> None:
        """Keeps a key, durably.

        Raises:
            Exists: The key or its id is there already.
            BackendDown: The store does not answer.
        """
        digest = self._digest(key)
        if not await self._client.script(_CREATE, KEYS, [digest, record.id, self._seal(digest, record)]):
            raise Exists("The API key exists already", param="api_key")

    async def list(self) -> list[ApiKey]:
        """Every key, oldest first.

        Raises:
            BackendDown: The store does not answer.
        """
        records, uses = await self._client.script(_LIST, KEYS, [])
        used = dict(zip(uses[::2], uses[1::2], strict=True))
        found = [
            self._open(digest.decode(), record, used.get(record.partition(b" ")[0]))
            for digest, record in zip(records[::2], records[1::2], strict=True)
        ]
        return sorted(found, key=lambda key: (key.created_at, key.id))

    async def look(self, key_or_id: str) -> ApiKey | None:
        """The record of a key by itself or by its id, as the store has it now; it does not count as a use.

        Raises:
            BackendDown: The store does not answer.
        """
        answer = await self._client.script(_LOOK, KEYS, self._named(key_or_id))
        return self._open(answer[2].decode(), answer[0], answer[1]) if answer else None

    async def rotate(self, old: ApiKey, ends: datetime | None, key: str, record: ApiKey) -> None:
        """Keeps a new key and, in the same write, gives an old one its end (None: now, and it is forgotten).

        Raises:
            Stale: The old key was changed or removed meanwhile; nothing was done.
            BackendDown: The store does not answer.
        """
        answer = await self._client.script(_LOOK, KEYS, ["", old.id])
        digest = answer[2].decode() if answer else ""
        if not answer or replace(self._open(digest, answer[0], None), last_used_at=old.last_used_at) != old:
            raise Stale("The API key was changed meanwhile", param="key")
        ending = b"" if ends is None else self._seal(digest, replace(old, expires_at=ends))
        new = self._digest(key)
        arguments = [CHANGES, KIND, digest, old.id, answer[0], ending, new, record.id, self._seal(new, record)]
        if not await self._client.script(_ROTATE, KEYS, arguments):
            raise Stale("The API key was changed meanwhile", param="key")
        self._cache.drop(digest)

    async def revoke(self, key_or_id: str, *, while_there: Sequence[str] = ()) -> ApiKey | None:
        """Removes a key by itself or by its id, at once on every replica; None if there is no such key.

        Raises:
            Stale: None of the ids `while_there` is there any more; nothing was done.
            BackendDown: The store does not answer.
        """
        arguments = [*self._named(key_or_id), CHANGES, KIND, *while_there]
        answer = await self._client.script(_REVOKE, KEYS, arguments)
        if not answer:
            return None
        if len(answer) == 1:
            raise Stale("The keys were changed meanwhile", param="key")
        digest = answer[2].decode()
        self._cache.drop(digest)
        return self._open(digest, answer[0], answer[1])

    def heard(self, digest: str) -> None:
        """Forgets a key that is said to be revoked or changed."""
        self._cache.drop(digest)

    def distrust(self) -> None:
        """Looks at every cached key again before its next use."""
        self._cache.distrust()

    def _named(self, key_or_id: str) -> tuple[str, str]:
        """Hash and id, of which the one that is not known is ""."""
        by_id = key_or_id.startswith(_ID_PREFIX)  # no key may begin so
        return ("", key_or_id) if by_id else (self._digest(key_or_id), "")

    def _digest(self, key: str) -> str:
        return self._secrets.hash("apikey", key)

    def _seal(self, digest: str, record: ApiKey) -> bytes:
        fields: dict[str, Any] = {
            "user": record.user_id,
            "tenant": record.tenant_id,
            "permissions": sorted(record.permissions),
            "description": record.description,
            "created": record.created_at.isoformat(),
            "expires": record.expires_at.isoformat() if record.expires_at else None,
            "requests_per_minute": record.requests_per_minute,
            "tokens_per_day": record.tokens_per_day,
        }
        # The id stands in clear before the rest: scripts need it, and it tells nothing.
        return record.id.encode() + b" " + self._secrets.seal("apikey", digest + record.id, orjson.dumps(fields))

    def _open(self, digest: str, raw: bytes, used: bytes | None) -> ApiKey:
        raw_id, _, sealed = raw.partition(b" ")
        key_id = raw_id.decode()
        fields = orjson.loads(self._secrets.open("apikey", digest + key_id, sealed))
        return ApiKey(
            id=key_id,
            user_id=fields["user"],
            tenant_id=fields["tenant"],
            permissions=frozenset(fields["permissions"]),
            description=fields["description"],
            created_at=datetime.fromisoformat(fields["created"]),
            expires_at=datetime.fromisoformat(fields["expires"]) if fields["expires"] else None,
            last_used_at=from_unix(int(used)) if used else None,
            requests_per_minute=fields.get("requests_per_minute", 0),
            tokens_per_day=fields.get("tokens_per_day", 0),
        )
