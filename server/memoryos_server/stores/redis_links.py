"""The connections to a Redis-side store, for each kind of deployment: one server, a master behind sentinels, a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from memoryos_server.stores.redis_cluster import ClusterLink
from memoryos_server.stores.redis_nodes import WAITING, common, credentials, tls
from memoryos_server.stores.redis_url import Endpoint
from memoryos_server.stores.scope import MANIFEST

_PROBES = (MANIFEST,)


class Link(Protocol):
    """The connections to one store."""

    async def run(self, *command: Any) -> Any:
        """The answer to a command, of the node that has its first key."""

    async def together(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers to commands that need not be one step."""

    async def probes(self) -> Sequence[str]:
        """Keys such that each part of the store that takes writes has one of them."""

    async def listener(self, channel: str) -> Redis:
        """A connection of its own to where a channel's messages are heard; nothing reconnects behind its back."""

    def is_where_heard(self, listener: Redis, channel: str) -> bool:
        """Whether `listener` is still connected to where a channel's messages are surely heard."""

    async def parts(self) -> list[Redis]:
        """A client of its own for each part of the store that takes writes; to be closed by who asks."""

    async def layout(self) -> object:
        """What each part of the store has now. If it differs from before, data may have moved between parts meanwhile."""

    async def aclose(self) -> None:
        """Closes every connection."""


def open_link(endpoint: Endpoint) -> Link:
    """The connections to a store; none is made before the first command."""
    if endpoint.kind == "cluster":
        return ClusterLink(endpoint)
    return _OneLink(endpoint)


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to whatever server the sentinels call the master when the connection is made."""


class _OneLink:
    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._sentinel = sentinels(endpoint) if endpoint.kind == "sentinel" else None
        self._pool = self._connections(BlockingConnectionPool, 1)
        self._redis: Redis = Redis(connection_pool=self._pool)

    async def run(self, *command: Any) -> Any:
        return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]  # untyped in redis-py

    async def together(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()

    async def probes(self) -> Sequence[str]:
        return _PROBES

    async def listener(self, channel: str) -> Redis:
        return Redis.from_pool(self._connections(ConnectionPool, 0))

    def is_where_heard(self, listener: Redis, channel: str) -> bool:
        return True  # a master that is one no more is told to drop its clients, by the sentinels

    async def parts(self) -> list[Redis]:
        return [Redis.from_pool(self._connections(ConnectionPool, 1))]

    async def layout(self) -> object:
        return None

    async def aclose(self) -> None:
        await self._redis.aclose()
        await self._pool.disconnect()
        for sentinel in self._sentinel.sentinels if self._sentinel else ():
            await sentinel.aclose()

    def _connections(self, plain: type[ConnectionPool], retries: int) -> ConnectionPool:
        endpoint = self._endpoint
        options = {**common(endpoint, retries), **credentials(endpoint), **tls(endpoint), "db": endpoint.database}
        if plain is BlockingConnectionPool:
            options |= WAITING
        if self._sentinel is not None:
            options["connection_class"] = SentinelManagedSSLConnection if endpoint.tls else SentinelManagedConnection
            kind = _SentinelPool if plain is BlockingConnectionPool else SentinelConnectionPool
            return kind(endpoint.service, self._sentinel, **options)  # type: ignore[no-untyped-call]  # untyped in redis-py
        if endpoint.socket:
            return plain(connection_class=UnixDomainSocketConnection, path=endpoint.socket, **options)
        ((host, port),) = endpoint.hosts
        return plain(connection_class=SSLConnection if endpoint.tls else Connection, host=host, port=port, **options)


def sentinels(endpoint: Endpoint) -> Sentinel:
    """Who knows where the master is."""
    own = {
        **common(endpoint, 0),
        "username": endpoint.sentinel_username or None,
        "password": endpoint.sentinel_password or None,
        **({"ssl": True, **tls(endpoint)} if endpoint.tls else {}),
    }
    return Sentinel(endpoint.hosts, sentinel_kwargs=own)  # type: ignore[no-untyped-call]  # untyped in redis-py
