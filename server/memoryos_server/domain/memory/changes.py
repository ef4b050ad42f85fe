"""Changes of records that a caller asks for: read, decide, accept durably, apply.

A change is accepted as a queue entry before anything else knows of it, and only if nothing changed the subject since its
reads: two writers cannot lose one another's change. Applying it comes after, may be repeated, and is made good by the
worker where it could not be done.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from memoryos_server.domain.core import audit
from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import Fault, NotFound, Stale
from memoryos_server.domain.core.level import Level
from memoryos_server.domain.memory.indexing import Indexing
from memoryos_server.domain.memory.progress import Locks
from memoryos_server.domain.ports import Change, Entry, Queue, Subject

log = logging.getLogger(__name__)

Make = Callable[[], Awaitable[Change | None]]
"""Reads what it needs and decides on the change; None: nothing is to be changed. Called again if something came between."""

_ATTEMPTS = 5
_REMEMBERED = 10_000
_DERIVED = frozenset({"segment", "fact"})


class Changes:
    """Makes changes, one at a time per subject.

    Args:
        queue: The ledger.
        indexing: Applies them.
        locks: Who holds which subject.
        level: Whether the searchable side may lack something that was accepted.
        fell_behind: Told when a change could not be applied at once.
        accepted: Told of every accepted change.
        admit: Refuses what there is no room for.
        give_back: Told that what was admitted was not accepted after all.
    """

    def __init__(
        self,
        queue: Queue,
        indexing: Indexing,
        locks: Locks,
        *,
        level: Level,
        fell_behind: Callable[[], None],
        accepted: Callable[[Subject], None],
        admit: Callable[[str], None],
        give_back: Callable[[str], None],
    ) -> None:
        self._queue = queue
        self._indexing = indexing
        self._locks = locks
        self._level = level
        self._fell_behind = fell_behind
        self._accepted = accepted
        self._admit = admit
        self._give_back = give_back
        self._applied: OrderedDict[str, int] = OrderedDict()
        self._under_way: set[asyncio.Task[bool]] = set()

    async def change(self, subject: Subject, make: Make, *, reads: bool = True) -> bool:
        """Makes a change and applies it.

        Args:
            subject: Whose records.
            make: Decides on the change.
            reads: Whether it looks at what is stored. If not, it is accepted while the searchable side is down, too.

        Returns:
            Whether the change, though durable, waits to be applied.

        Raises:
            BackendDown: The change could not be kept; or it reads, and the searchable side is down or behind.
            Stale: Other changes of the subject kept coming between.
            TooMany: There is no room for it now.
        """
        async with AsyncExitStack() as held:
            await held.enter_async_context(self._locks.change(subject.id))
            others = (self._locks.digest(subject.id), self._locks.segments(subject.id))
            derived = False
            for _ in range(_ATTEMPTS):
                before = [lock.times for lock in others]
                mark = self._level.mark()
                revision = await self._base(subject, mark) if reads else None
                try:
                    change = await make()
                except NotFound:
                    if reads:
                        self._level.check_since(mark)
                    raise
                if reads:
                    self._level.check_since(mark)
                if change is None:
                    return False
                if not derived and _touches_derived(change):
                    # Facts and segments are being made of this subject's turns: what was read may be old by then.
                    derived = True
                    under_way = [lock.locked() for lock in others]
                    for lock in others:
                        await held.enter_async_context(lock)
                    if reads and (any(under_way) or [lock.times - 1 for lock in others] != before):
                        continue
                if bounded := change.adds:  # what removes is never refused
                    self._admit(subject.tenant_id)
                draft = audit.draft()
                work = asyncio.create_task(self._submit(subject, change, revision, draft, bounded))
                self._under_way.add(work)
                work.add_done_callback(self._under_way.discard)
                try:
                    return await asyncio.shield(work)
                except asyncio.CancelledError:
                    # The caller left; what is accepted stays accepted, and nobody else may change the subject meanwhile.
                    keep = held.pop_all()
                    ending = asyncio.create_task(_release(work, keep))
                    self._under_way.add(ending)
                    ending.add_done_callback(self._under_way.discard)
                    raise
                except Stale as stale:
                    if revision is None or await self._queue.revision(subject) == revision:
                        raise stale  # the subject's epoch is over
        raise Stale("Other changes of this user's memory came between; try again")

    async def drain(self) -> None:
        """Waits for changes under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _base(self, subject: Subject, mark: int) -> int:
        """The revision, with every change up to it applied.

        Raises:
            BackendDown: The searchable side lacks something.
        """
        self._level.check_since(mark)
        revision = await self._queue.revision(subject)
        if self._applied.get(subject.id) != revision:
            # Somebody else's change, or one of before this process began: it may be accepted and not applied yet.
            async for entry in self._queue.open_entries(subject.partition):
                if entry.change and entry.subject.id == subject.id and self._indexing.is_unwritten(entry.id):
                    await self._indexing.apply(entry, entry.change)
            self._note(subject, revision)
        return revision

    async def _submit(
        self, subject: Subject, change: Change, revision: int | None, draft: audit.Draft | None, bounded: bool
    ) -> bool:
        reach("accept.before")
        try:
            entry = await self._recorded(subject, change, revision, draft)
        except Fault:
            if bounded:
                self._give_back(subject.tenant_id)
            raise
        reach("change.submitted")
        self._indexing.know(entry.id)
        self._indexing.removes(entry.id, change)
        try:
            # What waits here was accepted earlier: it must not be applied after this.
            if self._level.behind:
                return True
            await self._indexing.apply(entry, change)
            if revision is not None:
                self._note(subject, revision + 1)
        except Fault as fault:
            log.warning("an accepted change waits to be applied: %s", fault.message)
            self._fell_behind()
            return True
        except Exception:
            log.exception("an accepted change could not be applied and is left to the worker")
            self._fell_behind()
            return True
        finally:
            self._accepted(subject)
        return False

    async def _recorded(
        self, subject: Subject, change: Change, revision: int | None, draft: audit.Draft | None
    ) -> Entry:
        event = None if draft is None else draft.take()
        try:
            return await self._queue.submit(subject, change, event, revision=revision)
        except Exception:
            if draft is not None and event is not None:
                draft.give_back()
            raise

    def _note(self, subject: Subject, revision: int) -> None:
        self._applied.pop(subject.id, None)
        self._applied[subject.id] = revision
        while len(self._applied) > _REMEMBERED:
            self._applied.popitem(last=False)


def _touches_derived(change: Change) -> bool:
    return bool(change.remove) or any(record.kind in _DERIVED for record in change.put)


async def _release(work: asyncio.Task[bool], held: AsyncExitStack) -> bool:
    async with held:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # nobody is there to be told
    return True
