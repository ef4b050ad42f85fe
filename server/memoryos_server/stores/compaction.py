"""The embedded stores' files, rewritten so that what was deleted is in them no more; of live stores, nothing is done.

Valkey writes its append-only file anew in a process of its own. The vector process copies what lives into fresh shards, in
small steps between which everybody else is answered (`edge_vacuum`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from redis.exceptions import RedisError

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports.privacy import NOT_OURS
from memoryos_server.stores.redis_client import Client

REDIS, VECTORS = "redis", "qdrant"
"""The stores, as everywhere in the API, for what stands for them, too."""

_LOOK_SECONDS = 0.05


class Vacuumed(Protocol):
    """The searchable side, if its files are ours."""

    async def vacuum(self) -> None:
        """Rewrites them."""


class Compaction:
    """The port `Compactor`.

    Args:
        client: The Redis side, None if it is somebody else's.
        vectors: The searchable side, None if it is.
    """

    def __init__(self, client: Client | None, vectors: Vacuumed | None) -> None:
        self._client = client
        self._vectors = vectors

    async def compact(self) -> Mapping[str, str]:
        """Store -> when its files were rewritten, as RFC 3339 text, or `NOT_OURS`.

        Raises:
            BackendDown: A store does not answer, or cannot rewrite its files now.
        """
        done = {REDIS: NOT_OURS, VECTORS: NOT_OURS}
        if self._vectors is not None:
            await self._vectors.vacuum()
            done[VECTORS] = utc_now().isoformat()
        if self._client is not None:
            await _rewritten(self._client)
            done[REDIS] = utc_now().isoformat()
        return done


async def _rewritten(client: Client) -> None:
    """Has the append-only file written anew, from what is in the store now."""
    while True:
        try:
            await client.run("BGREWRITEAOF")
            break
        except RedisError as error:  # one that began before may hold what was deleted since
            if "in progress" not in str(error):
                raise BackendDown("The store cannot rewrite its file") from error
        await asyncio.sleep(_LOOK_SECONDS)
    while True:
        found = await client.run("INFO", "persistence")
        # Scheduled: a snapshot is being written, and it begins after that.
        if not int(found["aof_rewrite_in_progress"]) and not int(found["aof_rewrite_scheduled"]):
            break
        await asyncio.sleep(_LOOK_SECONDS)
    if found["aof_last_bgrewrite_status"] != "ok":
        raise BackendDown("The store could not rewrite its file")
