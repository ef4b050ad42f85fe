"""The connections to a Redis-side store, for each kind of deployment: one server, a master behind sentinels, a cluster.

The library's own defaults would repeat a command up to ten times and wait five seconds each time. Here every command is
sent once more after a broken connection, and never after a timeout: so every command used must be safe to repeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, ConnectionError, SlotNotCoveredError

from memoryos_server.stores.redis_url import Endpoint
from memoryos_server.stores.scope import MANIFEST, PARTITIONS, Partition

_CONNECTIONS = 64
_CONNECT_SECONDS = 2.0
_WAIT_FOR_CONNECTION_SECONDS = 5.0
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

    async def aclose(self) -> None:
        """Closes every connection."""


def open_link(endpoint: Endpoint) -> Link:
    """The connections to a store; none is made before the first command."""
    if endpoint.kind == "cluster":
        return _ClusterLink(endpoint)
    return _OneLink(endpoint)


def _credentials(endpoint: Endpoint) -> dict[str, Any]:
    return {"username": endpoint.username or None, "password": endpoint.password or None}


def _common(endpoint: Endpoint, retries: int) -> dict[str, Any]:
    return {
        "socket_timeout": endpoint.timeout,
        "socket_connect_timeout": min(_CONNECT_SECONDS, endpoint.timeout),
        "retry": Retry(NoBackoff(), retries, (ConnectionError,)),
        "protocol": 2,
        "decode_responses": False,
    }


def _tls(endpoint: Endpoint) -> dict[str, Any]:
    if not endpoint.tls:
        return {}
    return {"ssl_ca_certs": endpoint.ca_file or _system_authorities(), "ssl_min_version": ssl.TLSVersion.TLSv1_2}


def _system_authorities() -> str | None:
    return ssl.get_default_verify_paths().cafile


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

    async def aclose(self) -> None:
        await self._redis.aclose()
        await self._pool.disconnect()
        for sentinel in self._sentinel.sentinels if self._sentinel else ():
            await sentinel.aclose()

    def _connections(self, plain: type[ConnectionPool], retries: int) -> ConnectionPool:
        endpoint = self._endpoint
        options = {**_common(endpoint, retries), **_credentials(endpoint), **_tls(endpoint), "db": endpoint.database}
        if plain is BlockingConnectionPool:
            options |= {"max_connections": _CONNECTIONS, "timeout": _WAIT_FOR_CONNECTION_SECONDS}
        if self._sentinel is not None:
            options["connection_class"] = SentinelManagedSSLConnection if endpoint.tls else SentinelManagedConnection
            kind = _SentinelPool if plain is BlockingConnectionPool else SentinelConnectionPool
            return kind(endpoint.service, self._sentinel, **options)  # type: ignore[no-untyped-call]  # untyped in redis-py
        if endpoint.socket:
            return plain(connection_class=UnixDomainSocketConnection, path=endpoint.socket, **options)
        ((host, port),) = endpoint.hosts
        return plain(connection_class=SSLConnection if endpoint.tls else Connection, host=host, port=port, **options)


def node_client(endpoint: Endpoint, host: str, port: int) -> Redis:
    """A client of one server, which repeats nothing; `host` may be the path of a socket, with port 0."""
    options = {**_common(endpoint, 0), **_credentials(endpoint), **_tls(endpoint)}
    if endpoint.kind != "cluster":
        options["db"] = endpoint.database
    if endpoint.socket:
        return Redis.from_pool(ConnectionPool(connection_class=UnixDomainSocketConnection, path=host, **options))
    kind = SSLConnection if endpoint.tls else Connection
    return Redis.from_pool(ConnectionPool(connection_class=kind, host=host, port=port, **options))


def sentinels(endpoint: Endpoint) -> Sentinel:
    """Who knows where the master is."""
    own = {
        **_common(endpoint, 0),
        "username": endpoint.sentinel_username or None,
        "password": endpoint.sentinel_password or None,
        **({"ssl": True, **_tls(endpoint)} if endpoint.tls else {}),
    }
    return Sentinel(endpoint.hosts, sentinel_kwargs=own)  # type: ignore[no-untyped-call]  # untyped in redis-py


class _Cluster(RedisCluster):
    ERRORS_ALLOW_RETRY: Any = (ConnectionError, ClusterDownError, SlotNotCoveredError)  # not after a timeout


class _ClusterLink:
    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        options = {**_common(endpoint, 1), **_credentials(endpoint)}
        if endpoint.tls:
            options |= {"ssl": True, **_tls(endpoint)}
        nodes = [ClusterNode(host, port) for host, port in endpoint.hosts]
        # Whole coverage is not asked for: what a partial failure reaches fails, and everybody else is served.
        self._redis: RedisCluster = _Cluster(
            startup_nodes=nodes, require_full_coverage=False, max_connections=_CONNECTIONS, **options
        )
        # The library refuses a command for which no connection is free. Here it waits, as with one server.
        self._free = asyncio.Semaphore(_CONNECTIONS)

    async def run(self, *command: Any) -> Any:
        async with self._turn():
            return await self._redis.execute_command(*command)

    async def together(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        async with self._turn():
            await self._redis.initialize()
            pipeline = self._redis.pipeline()
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()

    async def probes(self) -> Sequence[str]:
        await self._redis.initialize()
        keys = [MANIFEST, *(Partition(number).lease for number in range(PARTITIONS))]
        by_node: dict[str, str] = {}
        for key in keys:
            node = self._redis.get_node_from_key(key)
            by_node.setdefault(node.name if node else "", key)
        return list(by_node.values())

    async def listener(self, channel: str) -> Redis:
        await self.run("EXISTS", channel)  # so that a node that is gone is noticed, and the one in its place found
        node = self._owner(channel)
        if node is None:
            raise ConnectionError("no node has the slot of the channel")
        # The node that scripts publish on: its messages need no bus between nodes.
        return node_client(self._endpoint, node.host, int(node.port))

    def is_where_heard(self, listener: Redis, channel: str) -> bool:
        node, connected = self._owner(channel), listener.connection_pool.connection_kwargs
        return node is not None and (node.host, node.port) == (connected["host"], connected["port"])

    async def parts(self) -> list[Redis]:
        await self._redis.initialize()
        return [node_client(self._endpoint, node.host, int(node.port)) for node in self._redis.get_primaries()]

    async def aclose(self) -> None:
        await self._redis.aclose()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with asyncio.timeout(_WAIT_FOR_CONNECTION_SECONDS):
            await self._free.acquire()
        try:
            yield
        finally:
            self._free.release()

    def _owner(self, channel: str) -> ClusterNode | None:
        return self._redis.get_node_from_key(channel)
