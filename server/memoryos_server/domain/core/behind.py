"""What is kept at once and written a little later, off the way of a call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from memoryos_server.domain.core.faults import Fault
from memoryos_server.domain.core.saying import Sparing

STOP_SECONDS = 2.0
"""How long the last write may take at a stop."""

_logger = logging.getLogger(__name__)
_log = Sparing(_logger)


class WrittenBehind(ABC):
    """Writes what waits, every now and then and once more at the end, while it is open (`async with`)."""

    def __init__(self, what: str, interval: float) -> None:
        """Keeps what it is, for the log, and the seconds between writes."""
        self._what = what
        self._interval = interval
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def write(self) -> None:
        """Writes what waits. While the store does not answer it goes on waiting; what no store could keep is dropped.

        Raises:
            BackendDown: The store does not answer.
        """

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=self._what)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(Fault, TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self.write()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.write()
            except Fault as fault:
                _log.warning("%s wait to be written: %s", self._what, fault.reason)
            except Exception:
                _logger.exception("%s could not be written", self._what)
