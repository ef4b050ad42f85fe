"""A client of the vector process: requests with ids over one connection, made anew when it broke.

It knows frames, not what is in them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from memoryos_server.stores.breaker import LOCAL_SECONDS, Breaker
from memoryos_server.stores.frames import FrameError, Splitter, pack


class EdgeError(Exception):
    """The vector process answered that a request is wrong or failed.

    Attributes:
        kind: `invalid` or `failed`.
    """

    def __init__(self, kind: str, message: str) -> None:
        """Keeps what the process said."""
        super().__init__(message)
        self.kind = kind


class _Link(asyncio.Protocol):
    """One connection and the answers it owes."""

    def __init__(self, heard: Callable[[], None]) -> None:
        self._heard = heard
        self.transport: asyncio.Transport | None = None
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.writable = asyncio.Event()
        self.writable.set()
        self._splitter = Splitter()

    @property
    def alive(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard()
        try:
            for number, failure, result in self._splitter.feed(data):
                # Nobody waits for the answer to a call that was cancelled or ran out of time.
                future = self.waiting.pop(number, None)
                if future is None or future.done():
                    continue
                if failure is None:
                    future.set_result(result)
                else:
                    future.set_exception(EdgeError(*failure))
        except (FrameError, TypeError, ValueError):
            if self.transport is not None:
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable.set()
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the vector process closed the connection"))
        self.waiting.clear()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


class EdgeClient:
    """Calls operations of the vector process on a socket.

    Attributes:
        reconnected: Called each time the connection was made anew, before anything is sent on it.
        breaker: Has calls fail at once while the process does not answer.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.reconnected: Callable[[], None] = lambda: None
        self.breaker = Breaker(
            "The vector store does not answer in time", "The vector store is not reachable", patience=LOCAL_SECONDS
        )
        self._connections = 0
        self._link: _Link | None = None
        self._opening = asyncio.Lock()
        self._numbers = itertools.count(1)

    async def call(self, operation: str, *arguments: Any, timeout: float, long: bool = False) -> Any:
        """The result of an operation. Connects if need be; never repeats a request.

        Args:
            operation: Its name.
            arguments: What msgpack can carry.
            timeout: For all of it, seconds.
            long: It takes long by its nature: it is waited for though the process answers nobody meanwhile.

        Raises:
            BackendDown: The process does not answer, and was not asked.
            OSError: There is no process at the socket, or it went away. The operation may have been done.
            TimeoutError: No answer in time. The operation may be done later.
            EdgeError: It answered with an error.
        """
        number = next(self._numbers)
        frame = pack([number, operation, list(arguments)])
        async with self.breaker.call(timeout, own=long) as call:
            try:
                link = await self._connected()
                await link.writable.wait()
                if not link.alive or link.transport is None:
                    raise ConnectionResetError("the vector process closed the connection")
            except OSError:
                call.refused()
                raise
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            link.waiting[number] = future
            try:
                link.transport.write(frame)
                return await future
            finally:
                link.waiting.pop(number, None)

    async def close(self) -> None:
        """Closes the connection. A later call opens another."""
        if self._link is not None and self._link.transport is not None:
            self._link.transport.abort()
        self._link = None

    async def _connected(self) -> _Link:
        if self._link is None or not self._link.alive:
            async with self._opening:
                if self._link is None or not self._link.alive:
                    _, self._link = await asyncio.get_running_loop().create_unix_connection(
                        lambda: _Link(self.breaker.heard), str(self._socket)
                    )
                    self._connections += 1
                    if self._connections > 1:
                        self.reconnected()
        return self._link
