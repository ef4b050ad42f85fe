"""When the fresh turns of a partition's subjects become segments, and how that is made certain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.memory import trouble
from memoryos_server.domain.memory.fencing import fenced
from memoryos_server.domain.memory.model import Consolidation
from memoryos_server.domain.memory.worktools import Tools
from memoryos_server.domain.ports import Lease, Subject

log = logging.getLogger(__name__)

DUE_SECONDS = 2.0
"""How often due subjects are asked for while nothing is settled."""

WITHHELD_PAUSE = timedelta(hours=1)
"""After how long it is looked again whether somebody may be remembered."""


class Consolidations:
    """The consolidations of one partition.

    Args:
        number: The partition.
        tools: What it works with.
        held: The lease, or a fault if it is lost.
        confirm: Asked before each write; a fault if the lease is lost.
    """

    def __init__(
        self, number: int, tools: Tools, held: Callable[[], Lease], confirm: Callable[[], Awaitable[None]]
    ) -> None:
        self._number = number
        self._tools = tools
        self._held = held
        self._confirm = confirm
        self._ask_at = 0.0
        self._postponed: dict[str, float] = {}

    def news(self) -> None:
        """Says that turns were settled: somebody may be due."""
        self._ask_at = 0.0

    async def due(self) -> list[Subject]:
        """The subjects that are due, if it is time to ask.

        Raises:
            BackendDown: The ledger does not answer.
        """
        now = asyncio.get_running_loop().time()
        if self._tools.consolidation is None or now < self._ask_at:
            return []
        self._ask_at = now + DUE_SECONDS
        self._postponed = {subject_id: until for subject_id, until in self._postponed.items() if until > now}
        due = await self._tools.queue.due(self._number, self._tools.now())
        return [subject for subject in due if subject.id not in self._postponed]

    async def run(self, due: Sequence[Subject]) -> None:
        """Makes segments of the fresh turns of subjects. One that fails stays due and is left alone for a while.

        Raises:
            BackendDown: A store does not answer.
            Stale: Somebody else has the partition now.
        """
        for subject in due:
            try:
                if self._tools.consolidation:
                    await self._one(subject, self._tools.consolidation)
            except Exception as error:
                if trouble.is_outage(error) or isinstance(error, Stale):
                    raise
                log.warning("a consolidation failed: %s", trouble.reason_of(error), exc_info=error)
                self._postponed[subject.id] = asyncio.get_running_loop().time() + trouble.MOST_SECONDS
        self.news()

    async def _one(self, subject: Subject, consolidation: Consolidation) -> None:
        tools = self._tools
        if not await tools.consents.allows(subject):
            # What was said before stays as it is, and waits for another decision.
            await tools.queue.consolidated(self._held(), subject, (), tools.now() + WITHHELD_PAUSE)
            return
        async with tools.locks.segments(subject.id):
            fresh = await tools.queue.fresh(subject)
            before = await tools.indexing.incarnation(subject)
            with fenced(self._confirm):
                done = await consolidation.consolidate(subject, fresh, tools.now())
        reach("consolidate.written")
        if await tools.flusher.covering() != before:
            return  # the engine was restarted in between: it is still due
        reach("consolidate.flushed")
        await tools.queue.consolidated(self._held(), subject, done.memory_ids, done.next_due)
        tools.counts.consolidated()
        reach("consolidate.closed")
