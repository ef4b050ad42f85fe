"""How an erasure comes to its end, whatever fails or dies on the way.

An erasure begins with one durable write (`Erasures.begin`), after which nothing of before can be read. What follows only
removes, may be repeated, and is taken up again by the next start or by another server: every category is erased beside
the others, none stops another, each is seen to be gone. After a while all are looked at once more, for what was under way
at the beginning may have come behind. Who sees that all is gone records it. Then the stores' files are rewritten, once for
all erasures that wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import Fault
from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Recorder
from memoryos_server.domain.ports.privacy import (
    ERASED,
    NOT_OURS,
    PARTIAL,
    Compactor,
    Erasure,
    Erasures,
    Part,
    UserData,
)

SETTLE_SECONDS = 60.0
"""After how long everything is looked at once more: longer than any call that writes may take."""

REWRITE_SECONDS = 60.0
"""How often files are rewritten at most: whoever is erased meanwhile waits for the next time."""

LOOK_SECONDS = 15.0
"""How often it is looked for erasures that other servers have left."""

BACKOFF_SECONDS = 1.0
MOST_BACKOFF_SECONDS = 300.0

_log = logging.getLogger(__name__)


class Untended:
    """Stands for what completes erasures where no server runs: the next start does."""

    async def erase(self, erasure: Erasure, asked: AuditEvent | None = None) -> Erasure:
        """Leaves it as it is begun."""
        return erasure


class Eraser:
    """Brings erasures to their end, in the background while it is open (`async with`).

    Args:
        erasures: Their records.
        data: The categories.
        compactor: Rewrites files.
        log: Where it is recorded that one has come to its end.
        forget: Drops what this process keeps in memory of a user, and has others do so; given the keyed hash.
        settle_seconds: `SETTLE_SECONDS`; 0 where a store takes nothing of whom it has erased.
        rewrite_seconds: `REWRITE_SECONDS`.
        look_seconds: `LOOK_SECONDS`.
        backoff_seconds: After how long what failed is tried again; twice as long each further time.
        now: The present time.
    """

    def __init__(
        self,
        erasures: Erasures,
        data: Sequence[UserData],
        compactor: Compactor,
        log: Recorder,
        *,
        forget: Callable[[str], None],
        settle_seconds: float = SETTLE_SECONDS,
        rewrite_seconds: float = REWRITE_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        backoff_seconds: float = BACKOFF_SECONDS,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._erasures = erasures
        self._data = data
        self._compactor = compactor
        self._log = log
        self._forget = forget
        self._settle = timedelta(seconds=settle_seconds)
        self._rewrite = rewrite_seconds
        self._look = look_seconds
        self._backoff = backoff_seconds
        self._now = now
        self._woken = asyncio.Event()
        self._under_way: set[str] = set()
        self._tries: dict[str, tuple[int, float]] = {}
        self._rewriting = (0, 0.0)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="eraser")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def erase(self, erasure: Erasure, asked: AuditEvent | None = None) -> Erasure:
        """Tries to erase everything once; what is left is tried again in the background. Gives the record as it is then.

        Args:
            erasure: As it is.
            asked: The event of the call, recorded with the outcome once all is gone; None: one that names nobody is.

        Raises:
            BackendDown: What became of it cannot be kept; it is done again.
        """
        self._under_way.add(erasure.id)
        try:
            return await self._tell(await self._erase(erasure), asked)
        finally:
            self._under_way.discard(erasure.id)
            self._woken.set()

    async def _erase(self, erasure: Erasure) -> Erasure:
        self._forget(erasure.whose.lookup)
        parts = await asyncio.gather(*(self._part(one, erasure) for one in self._data))
        reach("erase.removed")
        done = all(not part.error and not part.left for _, part in parts)
        now = self._now()
        settled = done and now - erasure.requested_at >= self._settle
        made = replace(
            erasure,
            state=ERASED if done else PARTIAL,
            parts=dict(parts),
            attempts=erasure.attempts + 1,
            verified_at=now if done else erasure.verified_at,
            settled=settled,
        )
        kept = await self._erasures.keep(made)
        if kept is None:  # another server was faster: its account is as good
            kept = await self._erasures.find(erasure.id)
        if done:
            reach("erase.verified")
        return kept or made

    async def _tell(self, erasure: Erasure, asked: AuditEvent | None = None) -> Erasure:
        """Records that all of an erasure is gone, unless that was done; gives it as it is then."""
        if erasure.state != ERASED or erasure.told:
            return erasure
        now, tenant_id, resource = self._now(), erasure.whose.tenant_id, f"erasure/{erasure.id}"
        if asked is None:
            asked = AuditEvent("", now, "gdpr.delete", tenant_id, "", "", "DeleteUserData", "", erasure.actor)
        # Always the same id, by which the log knows it when it is recorded again, or by another server, soon afterwards.
        name = derived_uuid(resource)
        try:
            await self._log.append(
                [asked._replace(id=name, timestamp=now, resource=resource, outcome="ok", outlives=True)]
            )
            reach("erase.told")
            kept = await self._erasures.keep(replace(erasure, told=True))
            return kept or await self._erasures.find(erasure.id) or erasure
        except Exception as error:
            said = error.message if isinstance(error, Fault) else type(error).__name__
            _log.warning("it waits to be recorded that an erasure has come to its end: %s", said)
            return erasure

    async def _part(self, data: UserData, erasure: Erasure) -> tuple[str, Part]:
        before = erasure.parts.get(data.name, Part())
        removed, left, error = before.removed, before.left, ""
        try:
            removed += await data.erase(erasure.whose)
            left = await data.left(erasure.whose)
        except Fault as fault:
            error = fault.message
        except Exception as failure:
            _log.exception("a category of an erasure failed: %s", data.name)
            error = type(failure).__name__
        return data.name, Part(removed, left if not error else None, error)

    async def _run(self) -> None:
        while True:
            pause = self._look
            self._woken.clear()
            try:
                pause = await self._round(await self._erasures.pending())
            except Fault as fault:
                _log.warning("erasures wait: %s", fault.message)
            except Exception:
                _log.exception("erasures wait")
            try:
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _round(self, pending: Iterable[Erasure]) -> float:
        """Does what is due; gives the seconds after which something else may be."""
        pause, ready = self._look, []
        known = [one for one in pending if one.id not in self._under_way]
        self._tries = {one.id: self._tries[one.id] for one in known if one.id in self._tries}
        loop = asyncio.get_running_loop()
        for found in known:
            erasure = await self._tell(found)
            if is_untold := erasure.state == ERASED and not erasure.told:
                pause = min(pause, self._backoff)
            if erasure.settled:
                ready += [] if is_untold else [erasure]
                continue
            tries, at = self._tries.get(erasure.id, (0, 0.0))
            wait = at - loop.time()
            if erasure.state == ERASED:  # it is time for the second look
                wait = max(wait, (erasure.requested_at + self._settle - self._now()).total_seconds())
            if wait <= 0:
                tries += 1
                wait = _pause(self._backoff, tries - 1)
                self._tries[erasure.id] = tries, loop.time() + wait
                after = await self._tell(await self._erase(erasure))
                if after.state == ERASED:
                    wait = 0.0
            pause = min(pause, wait)
        if ready:
            pause = min(pause, await self._compacted(ready))
        return max(pause, 0.01)

    async def _compacted(self, ready: Sequence[Erasure]) -> float:
        """Rewrites the files for all of them at once; gives the seconds until it is tried again if that failed."""
        loop = asyncio.get_running_loop()
        tries, at = self._rewriting
        if at > loop.time():
            return at - loop.time()
        try:
            files = await self._compactor.compact()
        except Exception as error:
            wait = _pause(self._backoff, tries)
            self._rewriting = tries + 1, loop.time() + wait
            said = error.message if isinstance(error, Fault) else type(error).__name__
            _log.warning("files wait to be rewritten without what was erased: %s", said)
            return wait
        self._rewriting = 0, loop.time() + self._rewrite
        reach("erase.rewritten")
        times = [datetime.fromisoformat(text) for text in files.values() if text != NOT_OURS]
        for erasure in ready:
            made = replace(erasure, files=dict(files), compacted_at=max(times, default=None))
            if await self._erasures.keep(made, ended=True) is None:
                self._woken.set()  # another server was faster, or it was looked at again
        return self._look


def _pause(first: float, tries: int) -> float:
    """Seconds before it is tried again after so many failures."""
    return float(min(first * 2 ** min(tries, 20), MOST_BACKOFF_SECONDS))
