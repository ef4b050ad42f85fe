"""Work that was given up: seen, repeated, dropped."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import Invalid, NotFound
from memoryos_server.domain.core.time import from_unix, utc_now
from memoryos_server.domain.memory.said import page_of
from memoryos_server.domain.ports import DeadLetter, Queue

_ID = re.compile(r"(\d{1,3})-(\d{1,15})-(\d{1,15})")


@dataclass(frozen=True, slots=True)
class QueueState:
    """The queue and a page of its dead letters.

    Attributes:
        depth: Open entries of all tenants.
        oldest_seconds: How long the oldest of them waits; 0 if there is none.
        dead_letters: Oldest first.
        next_page_token: Names the next page; "" at the end.
    """

    depth: int
    oldest_seconds: float
    dead_letters: list[DeadLetter]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Totals:
    """The queue of all tenants.

    Attributes:
        depth: Open entries.
        oldest_seconds: How long the oldest of them waits; 0 if there is none.
        dead: Dead letters.
    """

    depth: int
    oldest_seconds: float
    dead: int


class DeadLetters:
    """What an administrator or operator sees of the queue, and does about it.

    Args:
        queue: The ledger.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def state(self, tenant_id: str, *, page_size: int | None = None, page_token: str = "") -> QueueState:
        """The queue, and a page of a tenant's dead letters.

        Raises:
            Invalid: The page size or token is malformed.
            BackendDown: The ledger does not answer.
        """
        size = page_of(page_size)
        after = _order(page_token, "page_token") if page_token else (0, 0, 0)
        page: list[DeadLetter] = []
        async for letter in self.all(tenant_id):
            if _order(letter.id, "id") > after:
                page.append(letter)
            if len(page) > size:
                break
        depth, oldest = await self._open()
        return QueueState(depth, oldest, page[:size], page[size - 1].id if len(page) > size else "")

    async def totals(self) -> Totals:
        """How much there is, of all tenants.

        Raises:
            BackendDown: The ledger does not answer.
        """
        depth, oldest = await self._open()
        return Totals(depth, oldest, await self._queue.dead())

    async def all(self, tenant_id: str | None) -> AsyncIterator[DeadLetter]:
        """Every dead letter of a tenant (None: of all), oldest first.

        Raises:
            BackendDown: The ledger does not answer.
        """
        async for letter in self._queue.dead_letters(tenant_id):
            yield letter

    async def requeue(self, letter_id: str, tenant_id: str | None) -> None:
        """Gives a dead letter back to the workers, with no attempts counted.

        Raises:
            NotFound: There is no such dead letter in the tenant (None: in any).
        """
        if not await self._queue.requeue(letter_id, tenant_id):
            raise NotFound("There is no such dead letter", param="id")
        reach("requeue.done")

    async def requeue_all(self, tenant_id: str | None) -> int:
        """Gives back all dead letters there are now of a tenant (None: of all); how many."""
        ids = [letter.id async for letter in self._queue.dead_letters(tenant_id)]
        count = 0
        for letter_id in ids:
            count += await self._queue.requeue(letter_id, tenant_id)
            reach("requeue.done")
        return count

    async def discard(self, letter_id: str, tenant_id: str | None) -> None:
        """Drops a dead letter for good.

        Raises:
            NotFound: There is no such dead letter in the tenant (None: in any).
        """
        if not await self._queue.discard(letter_id, tenant_id):
            raise NotFound("There is no such dead letter", param="id")

    async def _open(self) -> tuple[int, float]:
        backlog = await self._queue.backlog()
        oldest: datetime | None = None
        for number in backlog:
            async for entry in self._queue.open_entries(number):
                at = from_unix(int(entry.id.partition("/")[2].partition("-")[0]) / 1000)
                oldest = at if oldest is None else min(oldest, at)
                break
        age = max(0.0, (utc_now() - oldest).total_seconds()) if oldest else 0.0
        return sum(backlog.values()), age


def _order(letter_id: str, param: str) -> tuple[int, int, int]:
    match = _ID.fullmatch(letter_id)
    if match is None:
        raise Invalid(f"{param} is none that was given out", param=param)
    partition, millis, number = map(int, match.groups())
    return millis, number, partition
