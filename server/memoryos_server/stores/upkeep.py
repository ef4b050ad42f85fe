"""What the upkeep of every family of vectors begins with: its connection's life, and stored points opened."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from memoryos_server.domain.ports import Record, Subject, Turn
from memoryos_server.stores.sealing import Sealers
from memoryos_server.stores.traffic import Stored, open_stored

DEADLINE_SECONDS = 5.0
"""How long a call may take, if nothing else is said."""


class Upkeep:
    """A connection to the searchable side, closed when its block ends.

    Args:
        sealers: Where sealers come from.
        analysis: The version of the analysis that makes the terms of what is written.
    """

    def __init__(self, sealers: Sealers, analysis: int) -> None:
        self._sealers = sealers
        self._analysis = analysis

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        raise NotImplementedError

    async def opened(self, subject: Subject, stored: Stored) -> Turn | Record:
        """What a point holds; a record without its history.

        Raises:
            SealBroken: It does not open with the subject's key.
            Stale: The subject's epoch is over.
            BackendDown: The key is not cached and the store does not answer.
        """
        return open_stored(stored, await self._sealers.sealer(subject))
