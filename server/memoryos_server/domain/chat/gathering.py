"""What memory has for a question: what was said, and what was noted, asked for side by side."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from memoryos_server.domain.chat.model import Memory, Noted, Notes, RecalledItem, Recollection
from memoryos_server.domain.core.faults import BackendDown, Fault
from memoryos_server.domain.core.saying import Sparing

_T = TypeVar("_T")

_log = Sparing(logging.getLogger(__name__))


@dataclass(frozen=True, slots=True)
class Gathered:
    """What came.

    Attributes:
        recalled: What was said, or None if it was not asked for or did not come.
        noted: The typed memories, or None if there are none or they did not come.
        degraded: Something did not come, or may be missing in what came.
        late: Something did not come in time, so that all of the time was spent.
    """

    recalled: Recollection | None = None
    noted: Noted | None = None
    degraded: bool = False
    late: bool = False

    @property
    def nothing(self) -> bool:
        """Neither came."""
        return self.recalled is None and self.noted is None

    def used(self, items: Iterable[RecalledItem]) -> None:
        """Notes which memories were shown: it counts as an access of all but what was said, which has no heat."""
        shown = [item.id for item in items if not item.said]
        if shown and self.noted is not None:
            self.noted.used(shown)


class Gathering:
    """Asks memory.

    Args:
        memory: The users' memory.
        notes: The users' typed memories, or None.
        limit: How many memories to ask for.
        explain: Whether to ask how scores came about.
    """

    def __init__(self, memory: Memory, notes: Notes | None, limit: int, *, explain: bool = False) -> None:
        """Keeps whom to ask."""
        self._memory = memory
        self._notes = notes
        self._limit = limit
        self._explain = explain

    async def gather(self, tenant_id: str, owner: str, query: str, seconds: float) -> Gathered:
        """What comes within so many seconds; neither waits for the other. An empty query finds rules only."""
        said = asyncio.ensure_future(self._recalled(tenant_id, owner, query)) if query else None
        noted = asyncio.ensure_future(self._notes.for_chat(tenant_id, owner, query)) if self._notes else None
        asked = [task for task in (said, noted) if task is not None]
        late: set[asyncio.Future[Any]] = set()
        try:
            if asked:
                _, late = await asyncio.wait(asked, timeout=seconds)
        finally:
            for task in asked:
                task.cancel()
                task.add_done_callback(_heard)
        first, second = _came(said), _came(noted)
        missing = (said is not None and first is None) or (noted is not None and second is None)
        degraded = missing or any(part is not None and part.degraded for part in (first, second))
        return Gathered(first, second, degraded, bool(late))

    async def demand(self, tenant_id: str, owner: str, query: str) -> Gathered:
        """As `gather`, for who cannot do without what was said: waits for it.

        Raises:
            BackendDown: What was said cannot be read.
        """
        noted = asyncio.create_task(self._noted(tenant_id, owner, query))
        try:
            said = await self._recalled(tenant_id, owner, query)
            notes = await noted
        finally:
            noted.cancel()
        missing = self._notes is not None and notes is None
        return Gathered(said, notes, missing or said.degraded or (notes is not None and notes.degraded))

    async def _recalled(self, tenant_id: str, owner: str, query: str) -> Recollection:
        return await self._memory.recall(tenant_id, owner, query, limit=self._limit, explain=self._explain)

    async def _noted(self, tenant_id: str, owner: str, query: str) -> Noted | None:
        if self._notes is None:
            return None
        try:
            return await self._notes.for_chat(tenant_id, owner, query)
        except BackendDown as fault:
            _log.warning("chat goes on without typed memories: %s", fault.reason)
            return None


def _heard(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()  # nobody waits for it any more; it must not leave a warning behind


def _came(task: asyncio.Future[_T] | None) -> _T | None:
    """What a task brought, or None if it is not done or failed."""
    if task is None:
        return None
    if not task.done() or task.cancelled():
        _log.warning("a part of memory did not answer in time; chat goes on without it")
        return None
    if (error := task.exception()) is not None:
        reason = error.reason if isinstance(error, Fault) else type(error).__name__
        _log.warning("chat goes on without a part of memory: %s", reason)
        return None
    return task.result()
