"""Bans and the whitelist on the Redis side: sealed, under keyed hashes, in one slot.

Who was banned is personal: an address stands nowhere in clear. Changes travel to other servers whole, so that none of them
needs to ask.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import orjson

from memoryos_server.domain.ports.defense import Ban, Change, Counts, Listed
from memoryos_server.stores.manifest import Manifest
from memoryos_server.stores.redis_changes import Changes
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.scope import DEFENSE_BANS, DEFENSE_COUNTS, DEFENSE_WHITELIST, defense_writer
from memoryos_server.stores.sealing import SealBroken

log = logging.getLogger(__name__)

KIND = "defense"
"""The kind of message that carries a change."""

_KEYS = {"ban": DEFENSE_BANS, "list": DEFENSE_WHITELIST}
_WRITER_SECONDS = 86_400
_AT_ONCE = 500
"""So many records are opened before others get their turn."""

_COUNT = Script(
    "count_defense",
    """
    -- KEYS counts, the writer's. ARGV number of its batch, seconds that it is remembered, requests, blocked.
    local last = redis.call('GET', KEYS[2])
    if last and tonumber(last) >= tonumber(ARGV[1]) then return 0 end
    redis.call('HINCRBY', KEYS[1], 'requests', ARGV[3])
    redis.call('HINCRBY', KEYS[1], 'blocked', ARGV[4])
    redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
    return 1
    """,
)

SCRIPTS = (_COUNT,)


class RedisDefense:
    """The port `DefenseStore`."""

    def __init__(self, client: Client, manifest: Manifest, changes: Changes) -> None:
        self._client = client
        self._secrets = manifest.secrets
        self._changes = changes

    async def load(self) -> tuple[list[Ban], list[Listed]]:
        """Everything that is kept.

        Raises:
            BackendDown: The store does not answer.
        """
        bans = [value for value in await self._all("ban") if isinstance(value, Ban)]
        return bans, [value for value in await self._all("list") if isinstance(value, Listed)]

    async def put(self, change: Change) -> None:
        """Keeps a change and tells the other servers.

        Raises:
            BackendDown: The store does not answer.
        """
        field, sealed = self._field(change), self._seal(change)
        if change.value is None:
            await self._client.run("HDEL", _KEYS[change.kind], field)
        else:
            await self._client.run("HSET", _KEYS[change.kind], field, sealed)
        self._changes.tell(KIND, base64.b64encode(sealed).decode())

    async def count(self, writer: str, batch: int, counts: Counts) -> None:
        """Adds to the counts; a batch given again counts once.

        Raises:
            BackendDown: The store does not answer.
        """
        keys = [DEFENSE_COUNTS, defense_writer(writer)]
        await self._client.script(_COUNT, keys, [batch, _WRITER_SECONDS, counts.requests, counts.blocked])

    async def counts(self) -> Counts:
        """The counts of all servers.

        Raises:
            BackendDown: The store does not answer.
        """
        requests, blocked = await self._client.run("HMGET", DEFENSE_COUNTS, "requests", "blocked")
        return Counts(int(requests or 0), int(blocked or 0))

    def follow(self, heard: Callable[[Change], None], missed: Callable[[], None]) -> None:
        """Has `heard` called with what other servers change, and `missed` when such changes may have been missed."""

        def told(message: str) -> None:
            try:
                heard(self._open(base64.b64decode(message)))
            except (SealBroken, ValueError, TypeError, KeyError):
                missed()  # of a server that writes it otherwise: the store knows

        self._changes.listen(KIND, told, missed)

    async def _all(self, kind: str) -> list[Ban | Listed | None]:
        found = await self._client.run("HGETALL", _KEYS[kind])
        values = []
        for number, (field, sealed) in enumerate(_pairs(found)):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            try:
                values.append(self._open(sealed).value)
            except (SealBroken, ValueError, TypeError, KeyError):
                log.error("an entry of the defense cannot be read: %s", field.decode(errors="replace"))
        return values

    def _field(self, change: Change) -> str:
        return self._secrets.hash("defense", change.kind, change.name)

    def _seal(self, change: Change) -> bytes:
        value = None if change.value is None else asdict(change.value)
        return self._secrets.seal("defense", "", orjson.dumps([change.kind, change.name, value]))

    def _open(self, sealed: bytes) -> Change:
        kind, name, value = orjson.loads(self._secrets.open("defense", "", sealed))
        if value is None:
            return Change(kind, name, None)
        return Change(kind, name, Ban(**value) if kind == "ban" else Listed(**value))


def _pairs(found: Any) -> list[tuple[bytes, bytes]]:
    if isinstance(found, Mapping):
        return list(found.items())
    return list(zip(found[::2], found[1::2], strict=True))
