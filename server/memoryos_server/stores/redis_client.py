"""The connection to the Redis side, and what its failures mean.

Works with any Redis (6.2 or later) or Valkey: only commands that both have. Nothing but this, `redis_links` with what it is
made of, and `redis_doctor` imports `redis`, apart from the look whether an embedded store has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from redis.asyncio.client import PubSub
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.breaker import LOCAL_SECONDS, OPEN_SECONDS, Breaker, probing
from memoryos_server.stores.redis_links import Link, open_link
from memoryos_server.stores.redis_nodes import timed_out
from memoryos_server.stores.redis_url import Endpoint, parse

_REPLY_SECONDS = 3.0
_SCANNED = 1000

_NO_ANSWER = "The store does not answer"
_REFUSES = "The store does not let this server in"

# Answers of a store that is there but cannot serve now, and what is said of them. redis-py has types for some, and takes
# their first word away; the others keep it. A store before Redis 7 puts it behind a dash when a script meets it.
_WORDS = {
    "OOM": "The store is full",
    "MISCONF": "The store cannot write to its disk",
    "READONLY": "The store is a replica, which takes no writes",
    "NOREPLICAS": "The store has too few replicas to take writes",
    "LOADING": "The store is still loading its data",
    "CLUSTERDOWN": "A part of the cluster does not serve",
    "MASTERDOWN": "The store has lost its master",
    "TRYAGAIN": "The store is moving its data",
    "NOAUTH": _REFUSES,
    "WRONGPASS": _REFUSES,
    "NOPERM": _REFUSES,
}
_TYPES: tuple[tuple[type[Exception], str], ...] = (
    (OutOfMemoryError, _WORDS["OOM"]),
    (ReadOnlyError, _WORDS["READONLY"]),
    (BusyLoadingError, _WORDS["LOADING"]),
    (ClusterDownError, _WORDS["CLUSTERDOWN"]),
    (TryAgainError, _WORDS["TRYAGAIN"]),
    (AuthenticationError, _REFUSES),
    (NoPermissionError, _REFUSES),
)
_WORD = re.compile(rf"(?:^|caused error: \W*|[ :]-)({'|'.join(_WORDS)})\b")


def socket_url(path: str | Path) -> str:
    """The URL of a store on a unix socket."""
    return "unix://" + quote(str(path))


class Script:
    """A Lua script that is one atomic change. Every script here is safe to run again with the same arguments.

    Attributes:
        name: For errors and tests.
        text: Its source.
        digest: By which a store that has run it knows it.
    """

    __slots__ = ("digest", "name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# Several commands as one step, the same on one server and in a cluster. ARGV: for each command its number of parts after
# the key, its name, and those parts; its key is the one of KEYS in its place.
_ATOMIC = Script(
    "atomic",
    """
    local out, at = {}, 1
    for k = 1, #KEYS do
      local n = tonumber(ARGV[at])
      out[k] = redis.call(ARGV[at + 1], KEYS[k], unpack(ARGV, at + 2, at + 1 + n))
      at = at + 2 + n
    end
    return out
    """,
)

_LENGTHS = Script(
    "lengths",
    """
    local out = {}
    for k = 1, #KEYS do out[k] = redis.call('XLEN', KEYS[k]) end
    return out
    """,
)


class Client:
    """Runs commands; says `BackendDown` when the store cannot.

    A command is sent once more after a broken connection, never after a timeout: so every command used must be safe to
    repeat.

    Args:
        where: A URL (see `redis_url`) or what it says.

    Attributes:
        breaker: Has commands fail at once while the store does not answer.
    """

    def __init__(self, where: str | Endpoint) -> None:
        endpoint = parse(where) if isinstance(where, str) else where
        self._link: Link = open_link(endpoint)
        self._has_slots = endpoint.kind == "cluster"
        self._sent: set[str] = set()
        self.breaker = Breaker(
            _NO_ANSWER,
            _NO_ANSWER,
            parts=self._has_slots,
            patience=LOCAL_SECONDS if endpoint.socket else OPEN_SECONDS,
        )

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._link.aclose()

    async def run(self, *command: Any) -> Any:
        """The raw answer to one command. Its first argument is a key: in a cluster that says where it runs.

        Raises:
            BackendDown: The store does not answer, or cannot serve now.
        """
        async with self._answering():
            return await self._link.run(*command)

    async def batch(self, commands: Sequence[tuple[Any, ...]], *, atomic: bool = False) -> list[Any]:
        """The raw answers to commands sent together.

        Args:
            commands: The commands.
            atomic: Nothing else runs in between; then all keys must lie in one slot.

        Raises:
            BackendDown: The store does not answer, or cannot serve now. Without `atomic`, some may have run.
        """
        if not commands:
            return []
        if atomic:
            args = [part for name, _, *rest in commands for part in (len(rest), name, *rest)]
            return cast("list[Any]", await self.script(_ATOMIC, [key for _, key, *_ in commands], args))
        async with self._answering():
            return await self._link.together(commands)

    async def lengths(self, streams: Sequence[str]) -> list[int]:
        """How many entries each stream has; not of one moment.

        Raises:
            BackendDown: The store does not answer, or cannot serve now.
        """
        # The library takes some 10 us for each command of a batch, which holds up everybody else of this process.
        if not self._has_slots:
            try:
                return cast("list[int]", await self.script(_LENGTHS, streams, []))
            except ClusterCrossSlotError:
                self._has_slots = True  # the only node of a cluster, whose URL does not say so
        return await self.batch([("XLEN", stream) for stream in streams])

    async def script(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """The raw answer of a script. In a cluster all of its keys lie in one slot.

        Raises:
            BackendDown: The store does not answer, or cannot serve now.
        """
        if script.digest in self._sent:
            try:
                return await self.run("EVALSHA", script.digest, len(keys), *keys, *args)
            except NoScriptError:
                pass  # the store was restarted, or another node of it is asked
        answer = await self.run("EVAL", script.text, len(keys), *keys, *args)
        self._sent.add(script.digest)
        return answer

    async def probe(self) -> None:
        """Returns if every part of the store answers and takes writes. Writes nothing.

        Raises:
            BackendDown: One does not.
        """
        with probing():
            async with self._answering():
                keys = await self._link.probes()
                # A write that comes to nothing is refused like any other by a store that is full, read-only or without disk.
                await asyncio.gather(*(self._link.run("SET", f"{key}:probe", "", "XX") for key in keys))

    async def names(self) -> AsyncGenerator[list[bytes], None]:
        """The names of all keys there are, of every part of the store, in pieces; some names may come twice.

        Raises:
            BackendDown: A part does not answer, or keys were on their way from one to another, so that some may be missing.
        """
        with _translated():
            before = await self._link.layout()
        async with self._parts() as parts:
            for part in parts:
                cursor = 0
                while True:
                    with _translated():
                        cursor, found = await part.scan(cursor, count=_SCANNED)
                    yield found
                    if not cursor:
                        break
            with _translated():
                if await self._link.layout() != before:
                    raise BackendDown(_WORDS["TRYAGAIN"])

    async def listeners(self, channel: str) -> int:
        """How many connections hear a channel, wherever in the store.

        Raises:
            BackendDown: A part does not answer.
        """
        async with self._parts() as parts:
            with _translated():
                return sum([int((await part.pubsub_numsub(channel))[0][1]) for part in parts])

    @contextlib.asynccontextmanager
    async def _parts(self) -> AsyncIterator[list[Any]]:
        with _translated():
            parts = await self._link.parts()
        try:
            yield parts
        finally:
            for part in parts:
                with contextlib.suppress(RedisError, OSError):
                    await part.aclose(close_connection_pool=True)

    @contextlib.asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        with _translated():
            async with self.breaker.call() as call:
                try:
                    yield
                except RedisError as error:
                    if _down(error) != _NO_ANSWER:
                        call.heard()
                    elif not timed_out(error):
                        call.refused()
                    raise
                except OSError as error:
                    if not timed_out(error):
                        call.refused()
                    raise
                call.heard()

    @contextlib.asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscription]:
        """A subscription, confirmed by the store.

        Raises:
            BackendDown: The store does not answer.
        """
        with _translated():
            listener = await self._link.listener(channel)
        pubsub = listener.pubsub()
        try:
            subscription = Subscription(pubsub, lambda: self._link.is_where_heard(listener, channel))
            with _translated():
                await pubsub.subscribe(channel)
            await subscription.confirmed()
            yield subscription
        finally:
            with contextlib.suppress(RedisError, OSError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]  # untyped in redis-py
                await listener.aclose(close_connection_pool=True)


class Subscription:
    """Messages of a channel, for as long as the connection surely lives."""

    def __init__(self, pubsub: PubSub, is_where_heard: Callable[[], bool]) -> None:
        self._pubsub = pubsub
        self._is_where_heard = is_where_heard

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
                if not self._is_where_heard():
                    raise BackendDown("the channel is on another node now")
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
            raise  # also what says already that it is down
        # What redis-py says may hold an address, never content; it is kept for the log, not for the caller.
        raise BackendDown(down) from error
    _if_cancelled(task, before)


def _if_cancelled(task: asyncio.Task[Any] | None, before: int) -> None:
    # Before Python 3.12 asyncio.wait_for, which redis-py sends with, swallows a cancellation that arrives as the sending
    # ends; a loop around us would then never stop.
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


def _down(error: Exception) -> str | None:
    """What is said of an error of the store; None for one that is our own fault."""
    for kind, said in _TYPES:
        if isinstance(error, kind):
            return said
    if isinstance(error, ResponseError):
        found = _WORD.search(str(error))
        return _WORDS[found[1]] if found else None
    if isinstance(error, RedisClusterException):
        return _WORDS["CLUSTERDOWN"]
    if isinstance(error, (ConnectionError, TimeoutError, OSError)) or _closed_meanwhile(error):
        return _NO_ANSWER
    return None


def _closed_meanwhile(error: Exception) -> bool:
    # Whoever closes a client closes the connection, too, that another task is about to send on. redis-py then fails over a
    # writer that is no longer there, or uvloop over one that is closed; nothing was sent.
    return isinstance(error, (AttributeError, TypeError, RuntimeError)) and any(
        frame.f_globals.get("__name__") == "redis.asyncio.connection" and "send_packed_command" in frame.f_code.co_name
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )
