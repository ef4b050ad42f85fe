"""Whose turn it is: accepted work in a fair order, so that nobody's backlog delays somebody else.

Within a partition tenants take turns, and within a tenant its subjects; a subject's own entries stay in order. Over the
partitions of a process tenants take turns at the few slots in which work is done.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from memoryos_server.domain.ports import Subject

_ASKED_FOR = 16
"""With how many of its tenants a partition asks for a slot."""

_REMEMBERED = 10_000
"""Of how many tenants it is known when they last had a slot; others count as having waited longest."""


@dataclass(frozen=True, slots=True)
class Place:
    """An open entry that waits: without its content, which is read when it is its turn.

    Attributes:
        id: The entry's id.
        subject: Whose.
    """

    id: str
    subject: Subject


class Waiting:
    """The open entries of a partition that nobody works on yet."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, OrderedDict[str, deque[Place]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, place: Place) -> None:
        """Puts an entry behind those of its subject."""
        self._of(place.subject).append(place)
        self._count += 1

    def put_back(self, places: Sequence[Place]) -> None:
        """Puts entries that were taken, in order, before the others of their subjects."""
        for place in reversed(places):
            self._of(place.subject).appendleft(place)
            self._count += 1

    def clear(self) -> None:
        """Forgets all."""
        self._tenants.clear()
        self._count = 0

    def of(self, subject: Subject) -> Iterable[Place]:
        """The entries of a subject, in order."""
        subjects = self._tenants.get(subject.tenant_id)
        return tuple(subjects.get(subject.id, ())) if subjects else ()

    def tenants(self, without: Container[str] = ()) -> list[str]:
        """Some of the tenants that have entries of other subjects than `without`, the longest unserved first."""
        found = []
        for tenant, subjects in self._tenants.items():
            if any(subject_id not in without for subject_id in subjects):
                found.append(tenant)
                if len(found) == _ASKED_FOR:
                    break
        return found

    def take(self, most: int, *, first: str = "", without: Container[str] = ()) -> list[Place]:
        """The next entries, at most `most`: one of each tenant in turn, and of each of its subjects in turn.

        Args:
            most: How many.
            first: The tenant that begins.
            without: Subjects that are passed over.
        """
        taken: list[Place] = []
        if first in self._tenants:
            self._tenants.move_to_end(first, last=False)
        idle = 0
        while len(taken) < most and idle < len(self._tenants):
            tenant, subjects = next(iter(self._tenants.items()))
            place = _next(subjects, without)
            if subjects:
                self._tenants.move_to_end(tenant)
            else:
                del self._tenants[tenant]
            if place is None:
                idle += 1
            else:
                idle = 0
                taken.append(place)
                self._count -= 1
        return taken

    def _of(self, subject: Subject) -> deque[Place]:
        return self._tenants.setdefault(subject.tenant_id, OrderedDict()).setdefault(subject.id, deque())


def _next(subjects: OrderedDict[str, deque[Place]], without: Container[str]) -> Place | None:
    for subject_id in subjects:
        if subject_id not in without:
            break
    else:
        return None
    places = subjects[subject_id]
    place = places.popleft()
    if places:
        subjects.move_to_end(subject_id)
    else:
        del subjects[subject_id]
    return place


@dataclass(eq=False, slots=True)
class _Asking:
    tenants: Callable[[], Sequence[str]]
    granted: asyncio.Future[str]


class Slots:
    """The places in which partitions work, given to tenants in turn: who had none for longest comes first.

    Args:
        count: How many there are.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._asking: dict[_Asking, None] = {}
        self._served: OrderedDict[str, int] = OrderedDict()
        self._turn = 0
        self._holding: dict[str, int] = {}

    @asynccontextmanager
    async def turn(
        self, tenants: Callable[[], Sequence[str]], news: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[str]:
        """Waits for a slot; gives the tenant whose turn it is, or "" and no slot if there is nobody left who wants it.

        Args:
            tenants: Who would work in it, asked each time a slot is given: whoever comes while others wait counts at once.
            news: Waits until there may be somebody else, and takes that in. Cancelled once a slot is given.
        """
        asking = _Asking(tenants, asyncio.get_running_loop().create_future())
        self._asking[asking] = None
        self._grant()
        try:
            while not asking.granted.done() and tenants():
                await _either(asking.granted, asyncio.ensure_future(news()))
                self._grant()
        except BaseException:
            self._withdraw(asking)
            raise
        if not asking.granted.done():
            self._withdraw(asking)
            yield ""
            return
        tenant = asking.granted.result()
        try:
            yield tenant
        finally:
            self._leave(tenant)

    def _withdraw(self, asking: _Asking) -> None:
        self._asking.pop(asking, None)
        if asking.granted.done():
            self._leave(asking.granted.result())  # it was given in the moment of leaving

    def shared(self, tenant: str) -> bool:
        """Whether other tenants want to work, too."""
        return any(t != tenant for t in self._holding) or any(t != tenant for a in self._asking for t in a.tenants())

    def _leave(self, tenant: str) -> None:
        self._free += 1
        self._holding[tenant] -= 1
        if not self._holding[tenant]:
            del self._holding[tenant]
        self._grant()

    def _grant(self) -> None:
        while self._free and (next_one := self._longest_unserved()):
            asking, tenant = next_one
            del self._asking[asking]
            self._free -= 1
            self._turn += 1
            self._served[tenant] = self._turn
            self._served.move_to_end(tenant)
            if len(self._served) > _REMEMBERED:
                self._served.popitem(last=False)
            self._holding[tenant] = self._holding.get(tenant, 0) + 1
            asking.granted.set_result(tenant)

    def _longest_unserved(self) -> tuple[_Asking, str] | None:
        """Of those that ask, whoever had no slot for longest; of equals who asked first."""
        found = (
            (self._served.get(tenant, 0), number, asking, tenant)
            for number, asking in enumerate(self._asking)
            for tenant in asking.tenants()
        )
        best = min(found, key=lambda one: one[:2], default=None)
        return best and best[2:]


async def _either(granted: asyncio.Future[str], news: asyncio.Future[None]) -> None:
    """Waits for one of them, and ends the second.

    Raises:
        Exception: What `news` raised.
    """
    try:
        waits: list[asyncio.Future[Any]] = [granted, news]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not news.done():
            news.cancel()
            await asyncio.wait([news])
    if not news.cancelled():
        news.result()
