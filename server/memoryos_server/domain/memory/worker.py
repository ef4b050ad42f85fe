"""The background work of a process: which partitions it works on, and when.

Partitions with open entries or due subjects are found by asking every half second, and by being told of what this process
accepted. Each is worked on by one process at a time, under a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from functools import partial

from memoryos_server.domain.core.faults import Fault
from memoryos_server.domain.memory import trouble
from memoryos_server.domain.memory.partition import Partition
from memoryos_server.domain.memory.worktools import Tools
from memoryos_server.domain.ports import Subject

log = logging.getLogger(__name__)

DUE_SECONDS = 2.0
"""How often subjects that are due by time are looked for."""

_MOST_REST = 5.0


class Worker:
    """Works on partitions until it is cancelled.

    Args:
        tools: What it works with.
        poll: Seconds between looks for work nobody here was told of.
    """

    def __init__(self, tools: Tools, *, poll: float = 0.5) -> None:
        self._tools = tools
        self._poll = poll
        self._partitions: dict[int, Partition] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._told: set[int] = set()
        self._lengths: Mapping[int, int] = {}
        self._woken = asyncio.Event()
        self._failures = 0
        self._rest_until = 0.0
        self._looked = 0.0
        self._asked_due = 0.0

    def wake(self, subject: Subject) -> None:
        """Says that a subject has a new entry."""
        self._told.add(subject.partition)
        if partition := self._partitions.get(subject.partition):
            partition.wake()
        self._woken.set()

    def works_on(self, subject: Subject) -> bool:
        """Whether this process is, as far as it knows, the one that works on a subject."""
        partition = self._partitions.get(subject.partition)
        return partition is None or not partition.foreign

    def reset(self) -> None:
        """Has every partition start over from its first open entry."""
        for partition in self._partitions.values():
            partition.reset()
            self._told.add(partition.number)
        self._woken.set()

    async def recover(self) -> None:
        """Counts and indexes what was left open by earlier processes.

        Raises:
            BackendDown: A store does not answer.
        """
        for number in await self._tools.queue.backlog():
            await self._partition(number).recover()

    async def run(self) -> None:
        """Works for ever."""
        try:
            while True:
                await self._rest()
                try:
                    async with asyncio.timeout(self._poll):
                        await self._woken.wait()
                except TimeoutError:
                    pass
                self._woken.clear()
                told, self._told = self._told, set()
                try:
                    self._start(told)
                    if told and not self._time_to_look():
                        continue
                    for number in list(self._tasks):
                        await self._partitions[number].claim()  # long work must not outlast the lease
                    backlog = await self._tools.queue.backlog()
                    for number in self._tasks:
                        if backlog.get(number, 0) > self._lengths.get(number, 0):
                            self._partitions[number].wake()  # maybe of what another process accepted
                    self._lengths = backlog
                    self._start({*backlog, *await self._due()})
                except Exception as error:
                    self._told |= told
                    self._failed(error)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def drain(self) -> None:
        """Works until no open entry is left that can be ended now, and gives the partitions back."""
        with contextlib.suppress(Fault):
            self._start(await self._tools.queue.backlog())
            while running := [task for n, task in self._tasks.items() if not self._partitions[n].only_waits]:
                await asyncio.wait(running, timeout=0.05)
        for task in self._tasks.values():
            task.cancel()
        for partition in self._partitions.values():
            with contextlib.suppress(Fault):
                await partition.release()

    def _partition(self, number: int) -> Partition:
        if number not in self._partitions:
            self._partitions[number] = Partition(number, self._tools)
        return self._partitions[number]

    def _start(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if number not in self._tasks:
                task = asyncio.create_task(self._partition(number).work(), name=f"partition-{number}")
                self._tasks[number] = task
                task.add_done_callback(partial(self._ended, number))

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(number, None)
        if task.cancelled():
            return
        if error := task.exception():
            self._told.add(number)
            self._failed(error)
        else:
            self._failures = 0
            if self._partitions[number].has_news:
                self._told.add(number)  # told of something while it ended
                self._woken.set()

    def _failed(self, error: BaseException) -> None:
        """Rests, longer each time, while a store is down."""
        now = asyncio.get_running_loop().time()
        if now < self._rest_until:
            return
        self._failures += 1
        self._rest_until = now + min(_MOST_REST, trouble.pause(self._failures - 1, 0.5))
        if isinstance(error, Fault):
            log.warning("accepted work waits: %s", error.message)
        else:
            log.error("the worker failed and begins again", exc_info=error)

    async def _rest(self) -> None:
        left = self._rest_until - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left)

    def _time_to_look(self) -> bool:
        """Whether it is time to look for what nobody here was told of, even if there is much else to do."""
        now = asyncio.get_running_loop().time()
        if now - self._looked < self._poll:
            return False
        self._looked = now
        return True

    async def _due(self) -> list[int]:
        """The partitions that have due subjects, if it is time to ask."""
        now = asyncio.get_running_loop().time()
        if self._tools.consolidation is None or now - self._asked_due < DUE_SECONDS:
            return []
        self._asked_due = now
        return await self._tools.queue.due_partitions(self._tools.now())
