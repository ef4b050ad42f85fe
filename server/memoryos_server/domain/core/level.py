"""Whether the searchable side holds everything that was acknowledged, now and while something was read.

A searchable side that was restarted lacks, for a moment, what was not durable there yet. That is noticed by reading, and may
be made good before the reader looks: to ask whether it lacks something now would call complete what was read in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from memoryos_server.domain.core.faults import BackendDown, NotFound
from memoryos_server.domain.core.patience import hurried

_CATCH_UP_SECONDS = 2.0

_T = TypeVar("_T")


class Level:
    """What is known of one searchable side.

    Args:
        down: Whether a store is known to be down: then nobody waits until nothing is missing.
    """

    def __init__(self, down: Callable[[], bool] = lambda: False) -> None:
        self._down = down
        self._lapses = 0
        self._reached = asyncio.Event()
        self._reached.set()

    @property
    def behind(self) -> bool:
        """Whether what was acknowledged may be missing now."""
        return not self._reached.is_set()

    def fall(self) -> None:
        """Says that something may be missing from now on."""
        self._lapses += 1
        self._reached.clear()

    def reach(self) -> None:
        """Says that nothing is missing any more."""
        self._reached.set()

    def mark(self) -> int:
        """This moment, for `lacked_since`."""
        return self._lapses - self.behind

    def lacked_since(self, mark: int) -> bool:
        """Whether what was read since a moment may lack what was acknowledged."""
        return self._lapses != mark

    def check_since(self, mark: int) -> None:
        """Refuses what was read since a moment if it may lack something.

        Raises:
            BackendDown: It may.
        """
        if self.lacked_since(mark):
            raise _catching_up()

    async def caught_up(self) -> bool:
        """Waits a moment where something is missing; whether nothing is. Nobody waits while a store is down, or in a hurry."""
        if self.behind and not hurried() and not self._down():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CATCH_UP_SECONDS):
                    await self._reached.wait()
        return not self.behind

    async def whole(self) -> int:
        """The moment, for `check_since`, from which something long is read that must lack nothing.

        Raises:
            BackendDown: Something may be missing, a moment later too.
        """
        await self.caught_up()
        mark = self.mark()
        self.check_since(mark)
        return mark

    async def read(self, read: Callable[[], Awaitable[_T]]) -> tuple[_T, bool]:
        """What a function reads, read again where it may lack something; and whether it may lack something still.

        Raises:
            BackendDown: It found nothing there, and may have lacked it.
            As the function.
        """
        await self.caught_up()
        mark = self.mark()
        try:
            found = await read()
        except NotFound:
            if not self.lacked_since(mark):
                raise
        else:
            if not self.lacked_since(mark):
                return found, False
        await self.caught_up()
        mark = self.mark()
        try:
            return await read(), self.lacked_since(mark)
        except NotFound:
            self.check_since(mark)
            raise

    async def sure(self, read: Callable[[], Awaitable[_T]]) -> _T:
        """What a function reads, with nothing missing.

        Raises:
            BackendDown: Something may be missing.
            As the function.
        """
        found, lacking = await self.read(read)
        if lacking:
            raise _catching_up()
        return found


def _catching_up() -> BackendDown:
    return BackendDown("The searchable side of memory is catching up")
