"""The connection to the Redis side, and what its failures mean.

Works with any Redis (6.2 or later) or Valkey: only commands that both have. Nothing else imports `redis`.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from memoryos_server.domain.core.faults import BackendDown

_CONNECTIONS = 64
_CONNECT_SECONDS = 2.0
_REPLY_SECONDS = 3.0
_WAIT_FOR_CONNECTION_SECONDS = 5.0
_SILENT_SECONDS = 0.3

# Answers of a store that is there but keeps nothing now: full, failing over, unable to persist. redis-py has types for
# some of them, and takes their first word away; the others keep it.
_CANNOT_SERVE = (OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError)
_CANNOT_SERVE_WORDS = ("MISCONF", "NOREPLICAS", "OOM", "READONLY")


def socket_url(path: str | Path) -> str:
    """The URL of a store on a unix socket."""
    return "unix://" + quote(str(path))


class Script:
    """A Lua script that is one atomic change. Every script here is safe to run again with the same arguments.

    Attributes:
        name: For errors and tests.
        text: Its source.
    """

    __slots__ = ("name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text


class Client:
    """Runs commands; says `BackendDown` when the store cannot.

    A command is sent once more after a broken connection, never after a timeout: so every command used must be safe to
    repeat. A store that let a command run out of time hangs: until it answers one again, commands wait for it only
    briefly, so that the waits of a call do not add up beyond its deadline.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
    """

    def __init__(self, url: str) -> None:
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_WAIT_FOR_CONNECTION_SECONDS,
            socket_timeout=_REPLY_SECONDS,
            socket_connect_timeout=_CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 1, (ConnectionError,)),
            protocol=2,
            decode_responses=False,
        )
        self._redis: Redis = Redis(connection_pool=self._pool)
        # A subscription notices a lost connection by the first error; nothing may reconnect behind its back.
        self._listening: Redis = Redis.from_url(
            url,
            socket_timeout=_REPLY_SECONDS,
            socket_connect_timeout=_CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=False,
        )
        self._digests: dict[str, str] = {}
        self._silent = False

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._redis.aclose()
        await self._pool.disconnect()
        await self._listening.aclose()

    async def run(self, *command: Any) -> Any:
        """The raw answer to one command.

        Raises:
            BackendDown: The store does not answer, or cannot serve now.
        """
        async with self._answering():
            return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]  # untyped in redis-py

    async def batch(self, commands: Sequence[tuple[Any, ...]], *, atomic: bool = False) -> list[Any]:
        """The raw answers to commands sent together.

        Args:
            commands: The commands.
            atomic: Nothing else runs in between; then all keys must lie in one slot.

        Raises:
            BackendDown: The store does not answer, or cannot serve now.
        """
        if not commands:
            return []
        async with self._answering(), self._redis.pipeline(transaction=atomic) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """The raw answer of a script.

        Raises:
            BackendDown: The store does not answer, or cannot serve now.
        """
        digest = self._digests.get(script.name)
        if digest is not None:
            try:
                return await self.run("EVALSHA", digest, len(keys), *keys, *args)
            except NoScriptError:
                pass  # the store was restarted and has forgotten its scripts
        loaded = await self.run("SCRIPT LOAD", script.text)
        self._digests[script.name] = loaded.decode() if isinstance(loaded, bytes) else str(loaded)
        return await self.run("EVALSHA", self._digests[script.name], len(keys), *keys, *args)

    @contextlib.asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        try:
            with _translated():
                async with asyncio.timeout(_SILENT_SECONDS if self._silent else None):
                    yield
        except BackendDown as fault:
            self._silent = self._silent or _timed_out(fault.__cause__)
            raise
        self._silent = False

    @contextlib.asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscription]:
        """A subscription, confirmed by the store.

        Raises:
            BackendDown: The store does not answer.
        """
        pubsub = self._listening.pubsub()
        try:
            subscription = Subscription(pubsub)
            with _translated():
                await pubsub.subscribe(channel)
            await subscription.confirmed()
            yield subscription
        finally:
            with contextlib.suppress(RedisError, OSError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]  # untyped in redis-py


class Subscription:
    """Messages of a channel, for as long as the connection surely lives."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub

    async def confirmed(self) -> None:
        """Returns once the store has said that it is subscribed."""
        with _translated():
            async with asyncio.timeout(_REPLY_SECONDS):
                while (await self._next(_REPLY_SECONDS) or {}).get("type") != "subscribe":
                    pass

    async def next(self, silence: float) -> str | None:
        """The next message, or None after `silence` seconds in which the connection proved alive.

        Raises:
            BackendDown: The connection is gone; messages may have been missed.
        """
        message = await self._next(silence)
        if message is None:
            with _translated():
                await self._pubsub.ping()
            message = await self._next(_REPLY_SECONDS)
            if message is None:
                raise BackendDown("the store does not answer a subscriber")
        if message["type"] == "message":
            return cast("bytes", message["data"]).decode()
        return None

    async def _next(self, seconds: float) -> dict[str, Any] | None:
        with _translated():
            return cast("dict[str, Any] | None", await self._pubsub.get_message(timeout=seconds))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError:
        raise
    except Exception as error:
        _if_cancelled(task, before)
        down = _down(error)
        if down is None:
            raise
        # What redis-py says may hold an address, never content; it is kept for the log, not for the caller.
        raise BackendDown(down) from error
    _if_cancelled(task, before)


def _if_cancelled(task: asyncio.Task[Any] | None, before: int) -> None:
    # Before Python 3.12 asyncio.wait_for, which redis-py sends with, swallows a cancellation that arrives as the sending
    # ends; a loop around us would then never stop.
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


def _timed_out(error: BaseException | None) -> bool:
    # The built-in one is the short wait's, the other redis-py's, which hides it behind a ConnectionError if it was a new
    # connection that stayed silent.
    while error is not None:
        if isinstance(error, (builtins.TimeoutError, TimeoutError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _down(error: Exception) -> str | None:
    if isinstance(error, (ConnectionError, TimeoutError, OSError)):
        return "The store does not answer"
    if isinstance(error, _CANNOT_SERVE):
        return "The store cannot serve now"
    if isinstance(error, ResponseError) and str(error).startswith(_CANNOT_SERVE_WORDS):
        return "The store cannot serve now"
    return None
