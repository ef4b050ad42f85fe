"""What other processes accepted: read your writes, through whichever server.

A turn is durable in the ledger before it is acknowledged, and searchable once some process has written it to the searchable
side. The ledger counts a subject's turns; a process that has not written, or seen written, as many as that writes the open
ones itself. Ids follow from the event, so two that write the same turn write it once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from memoryos_server.domain.core.faults import Fault
from memoryos_server.domain.ports import Subject, Turns

_REMEMBERED = 50_000


class Others:
    """Sees to it that what others accepted is searchable here.

    Args:
        turns: Counts what was accepted.
        write: Writes every open turn of a subject to the searchable side that this process has not written.
    """

    def __init__(self, turns: Turns, write: Callable[[Subject], Awaitable[None]]) -> None:
        self._turns = turns
        self._write = write
        self._seen: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def written(self, subject: Subject) -> None:
        """Returns once every turn accepted before is searchable, or cannot be made so now.

        Whoever does not wait for the end leaves the work going on.
        """
        try:
            accepted = await self._turns.accepted(subject)
        except Fault:
            return  # the answer will say that a store is down
        if self._seen.get(subject.id) == (subject.epoch, accepted):
            return
        if (task := self._tasks.get(subject.id)) is not None:
            await asyncio.wait([task])  # it may have begun before the newest turn was accepted
        task = self._tasks[subject.id] = asyncio.create_task(self._catch_up(subject, accepted))
        task.add_done_callback(lambda done: self._ended(subject.id, done))
        await asyncio.shield(task)

    def wrote(self, subject: Subject, numbers: Sequence[int]) -> None:
        """Says that turns, by their places in the order of acceptance, were written by this process."""
        if numbers and (numbers[0] == 1 or self._seen.get(subject.id) == (subject.epoch, numbers[0] - 1)):
            self._note(subject, numbers[-1])

    def forget_all(self) -> None:
        """Looks again at everybody: the searchable side may have lost something."""
        self._seen.clear()

    async def drain(self) -> None:
        """Waits for writes under way."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def _catch_up(self, subject: Subject, accepted: int) -> None:
        with contextlib.suppress(Fault):
            await self._write(subject)
            self._note(subject, accepted)

    def _ended(self, subject_id: str, done: asyncio.Task[None]) -> None:
        if self._tasks.get(subject_id) is done:
            del self._tasks[subject_id]

    def _note(self, subject: Subject, number: int) -> None:
        self._seen.pop(subject.id, None)
        self._seen[subject.id] = (subject.epoch, number)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
