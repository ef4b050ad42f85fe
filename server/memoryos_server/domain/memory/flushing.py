"""One flush of the searchable side for everybody who waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.ports import Vectors


class Flusher:
    """Flushes while somebody waits for it, at most once an interval.

    Args:
        vectors: The searchable side.
        interval: Seconds in which waiters gather.
    """

    def __init__(self, vectors: Vectors, interval: float) -> None:
        self._vectors = vectors
        self._interval = interval
        self._waiting: list[asyncio.Future[int]] = []
        self._wanted = asyncio.Event()
        self._hurry = asyncio.Event()
        self._holds = 0
        self._free = asyncio.Event()
        self._free.set()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Begins no flush while the block lasts.

        What ends with a flush stays open, then. So whatever reads the searchable side in the block, however slowly, and
        the ledger after that but still in the block, has all that was accepted: what the first lacks is open in the second.
        """
        self._holds += 1
        self._free.clear()
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                self._free.set()

    async def covering(self) -> int:
        """Waits for a flush that begins after this call; gives the incarnation whose writes it made durable.

        Raises:
            BackendDown: The searchable side could not be flushed.
        """
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wanted.set()
        return await future

    async def now(self) -> int:
        """Flushes at once.

        Raises:
            BackendDown: The searchable side could not be flushed.
        """
        await self._free.wait()
        reach("flush.before")
        incarnation = await self._vectors.flush()
        reach("flush.after")
        return incarnation

    def hurry(self) -> None:
        """Makes all further flushes begin as soon as they are asked for: the server stops."""
        self._hurry.set()

    async def run(self) -> None:
        """Flushes for ever."""
        while True:
            await self._wanted.wait()
            try:
                async with asyncio.timeout(self._interval):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            try:
                incarnation = await self.now()
            except BaseException as error:
                for future in waiting:
                    if not future.done():
                        future.set_exception(error) if isinstance(error, Exception) else future.cancel()
                if not isinstance(error, Exception):
                    raise
                continue
            for future in waiting:
                if not future.done():
                    future.set_result(incarnation)
