"""What this room needs of others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from memoryos_server.domain.core.level import Level
from memoryos_server.domain.ports import Change, Subject


class Changes(Protocol):
    """The way of every change: durable first, then applied to the searchable side."""

    async def change(
        self, subject: Subject, make: Callable[[], Awaitable[Change | None]], *, reads: bool = True
    ) -> bool:
        """Keeps and applies what `make` asks for (None: nothing); gives whether it waits to become searchable.

        Args:
            subject: Whose records change.
            make: Makes the change; called again if another change came in between.
            reads: `make` builds on what the searchable side holds, which must be complete.

        Raises:
            BackendDown: The change could not be kept, or what it builds on cannot be read.
        """

    @property
    def level(self) -> Level:
        """Whether what was acknowledged may be missing from the searchable side."""


class Touch(Protocol):
    """Counts accesses of records."""

    def touch(self, subject: Subject, ids: Sequence[str]) -> None:
        """Notes that records were returned or injected; written later, best effort."""
