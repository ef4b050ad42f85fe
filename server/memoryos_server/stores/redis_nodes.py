"""Connections to one server of a Redis-side store, whatever kind of deployment it belongs to.

The library's own defaults would repeat a command up to ten times and wait five seconds each time. Here every command is
sent once more after a broken connection, and never after a timeout: so every command used must be safe to repeat.
"""

from __future__ import annotations

import builtins
import ssl
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError

from memoryos_server.stores.redis_url import Endpoint

_CONNECTIONS = 64
_CONNECT_SECONDS = 2.0
_WAIT_FOR_CONNECTION_SECONDS = 5.0

WAITING: dict[str, Any] = {"max_connections": _CONNECTIONS, "timeout": _WAIT_FOR_CONNECTION_SECONDS}
"""Options of a `BlockingConnectionPool`: who finds no connection free waits for one."""


def credentials(endpoint: Endpoint) -> dict[str, Any]:
    """Options of connections: who we are."""
    return {"username": endpoint.username or None, "password": endpoint.password or None}


def common(endpoint: Endpoint, retries: int) -> dict[str, Any]:
    """Options of connections: times, repetitions after a broken connection, and the form of answers."""
    return {
        "socket_timeout": endpoint.timeout,
        "socket_connect_timeout": min(_CONNECT_SECONDS, endpoint.timeout),
        "retry": Retry(NoBackoff(), retries, (ConnectionError,)),
        "protocol": 2,
        "decode_responses": False,
    }


def tls(endpoint: Endpoint) -> dict[str, Any]:
    """Options of connections: whose certificates are believed; none without TLS."""
    if not endpoint.tls:
        return {}
    return {"ssl_ca_certs": endpoint.ca_file or _system_authorities(), "ssl_min_version": ssl.TLSVersion.TLSv1_2}


def _system_authorities() -> str | None:
    return ssl.get_default_verify_paths().cafile


def node_client(endpoint: Endpoint, host: str, port: int, *, shared: bool = False) -> Redis:
    """A client of one server.

    Args:
        endpoint: What else there is to know.
        host: Where it is; may be the path of a socket.
        port: With a socket 0.
        shared: It serves many at once: a command is sent once more after a broken connection, and who finds no connection
            free waits for one. Else it repeats nothing.
    """
    options = {**common(endpoint, int(shared)), **credentials(endpoint), **tls(endpoint)}
    if endpoint.kind != "cluster":
        options["db"] = endpoint.database
    if endpoint.socket:
        return Redis.from_pool(ConnectionPool(connection_class=UnixDomainSocketConnection, path=host, **options))
    options |= {"host": host, "port": port, "connection_class": SSLConnection if endpoint.tls else Connection}
    return Redis.from_pool(BlockingConnectionPool(**WAITING, **options) if shared else ConnectionPool(**options))


def timed_out(error: BaseException | None) -> bool:
    """Whether a failure is silence."""
    # The built-in one is the short wait's, the other redis-py's, which hides it behind a ConnectionError if it was a new
    # connection that stayed silent.
    while error is not None:
        if isinstance(error, (builtins.TimeoutError, TimeoutError)):
            return True
        error = error.__cause__ or error.__context__
    return False
