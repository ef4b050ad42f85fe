"""What leaves memory in time: old audit events, into archive files.

Marks of events leave by themselves three days after they were made (`redis_marks.LIFE`); an event's state is then that of its
episode. Dead letters stay until somebody looks at them. Audit events alone would grow for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memoryos_server.domain.core.faults import Fault, Invalid
from memoryos_server.stores.archive import Archive, ArchiveError
from memoryos_server.stores.chain import Link
from memoryos_server.stores.redis_audit import parsed
from memoryos_server.stores.redis_chain import PAGE, ChainBlockedError, RedisChain
from memoryos_server.stores.redis_client import Client

_log = logging.getLogger(__name__)

_SECONDS = 3600.0
_SOON_SECONDS = 30.0
_DAY_MILLIS = 86_400_000


class Retention:
    """Moves old audit events out of their chains into the archive, once an hour while the context lasts.

    What is moved is always the oldest part of a chain, so that archive and chain are one. A batch is removed from the store
    once it is durable in the archive. After a crash in between the last batch is removed again, so none is there twice.

    Args:
        client: The store.
        chain: The chains.
        sequence: Chains what is not chained yet.
        directory: Where the archive lies.
        audit_days: How old an event must be, in days; 0: none is moved.
        seconds: How often.
        shared: Whether other servers have the store, too: what lies in a directory of ours they could not read.
    """

    def __init__(
        self,
        client: Client,
        chain: RedisChain,
        sequence: Callable[[], Awaitable[None]],
        directory: Path,
        *,
        audit_days: float,
        seconds: float = _SECONDS,
        shared: bool = False,
    ) -> None:
        self._client = client
        self._chain = chain
        self._sequence = sequence
        self.directory = directory / "audit"
        self._days = 0 if shared else audit_days
        self._shared = shared
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._archive: Archive | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._days:
            self._task = asyncio.create_task(self._run(), name="retention")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def move(self, days: float | None = None) -> int:
        """Moves what is older than so many days (None: as configured, which may be never; 0: all of it); gives the number.

        Raises:
            Invalid: Other servers share the store.
            ArchiveError: The archive is damaged.
            OSError: It cannot be written. What was not moved stays where it was.
            BackendDown: The store does not answer.
        """
        if self._shared:
            raise Invalid("the store is live and servers may share it: its audit events stay in it", param="command")
        if days is None and not self._days:
            return 0
        async with self._lock:
            archive = await self._opened()
            seconds, micros = (int(part) for part in await self._client.run("TIME"))
            now = seconds * 1000 + micros // 1000
            until = now - int((self._days if days is None else days) * _DAY_MILLIS)
            await self._sequence()
            moved = 0
            for tenant in await self._chain.tenants():
                if not (await self._chain.head(tenant)).intact:
                    _log.error("no events of %s are archived, for the head of its chain was changed", tenant)
                    continue
                batch: list[Link] = []
                async for link in self._chain.forth(tenant):
                    # What says that it was written in the future keeps nothing here: somebody misled the store's clock.
                    if until < link.millis <= now + _DAY_MILLIS:
                        break
                    batch.append(link)
                    if len(batch) == PAGE:
                        moved += await self._move(archive, tenant, batch)
                        batch = []
                moved += await self._move(archive, tenant, batch)
            return moved

    async def _move(self, archive: Archive, tenant: str, links: list[Link]) -> int:
        if links:
            records = [[tenant, link.number, link.source, link.event, link.who, link.hash] for link in links]
            await asyncio.to_thread(archive.append, self._chain.home(tenant).number, records)
            await self._chain.archived(tenant, links[-1].number)
        return len(links)

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Moves nothing while the block lasts: what is read of the store and of the archive in it has each event once."""
        async with self._lock:
            await self._opened()
            yield

    @contextlib.asynccontextmanager
    async def unmoved(self) -> AsyncIterator[None]:
        """As `still`, but does not even open the archive, which puts aside what is torn at its end."""
        async with self._lock:
            yield

    async def verify(self) -> int:
        """Reads the whole archive; the number of events in it.

        Raises:
            ArchiveError: Something was changed, is missing or was cut off.
        """
        async with self._lock:
            archive = await self._opened()
            return await asyncio.to_thread(archive.verify)

    async def total(self, tenant_id: str | None = None) -> int:
        """The number of archived events of a tenant (None: of all).

        Raises:
            ArchiveError: The archive is damaged.
        """
        async with self._lock:
            totals = (await self._opened()).totals
        return sum(totals.values()) if tenant_id is None else totals.get(tenant_id, 0)

    async def newest(self, tenant_id: str | None, limit: int) -> list[tuple[dict[str, Any], bytes]]:
        """The newest archived events of a tenant (None: of all) as they were stored, oldest of them first.

        Raises:
            ArchiveError: The archive is damaged.
        """
        async with self._lock:
            archive = await self._opened()
            return await asyncio.to_thread(_newest, archive, tenant_id, limit)

    async def back(self, tenant_id: str, below: int) -> AsyncIterator[list[Link]]:
        """The archived links of a tenant with a number smaller than `below`, the newest first, batch by batch.

        Raises:
            ArchiveError: The archive is damaged.
        """
        async with self._lock:
            batches = _links(await self._opened(), tenant_id, below)
        while (links := await asyncio.to_thread(next, batches, None)) is not None:
            yield links

    async def _opened(self) -> Archive:
        if self._archive is None:
            archive = await asyncio.to_thread(Archive, self.directory)
            if archive.last is not None:
                tenant, number = archive.last["records"][-1][:2]
                try:
                    await self._chain.archived(tenant, number)
                except ChainBlockedError as error:  # the archive can be read all the same
                    _log.error("events that are archived may stay in the store, too: %s", error)
            self._archive = archive
        return self._archive

    async def _run(self) -> None:
        await asyncio.sleep(min(_SOON_SECONDS, self._seconds))
        while True:
            try:
                if moved := await self.move():
                    _log.info("%d audit events were moved into the archive", moved)
            except (Fault, OSError, ArchiveError) as error:
                _log.error("audit events stay in the store, for they cannot be archived: %s", error)
            except Exception:
                _log.exception("audit events were not archived; they stay in the store and are tried again")
            await asyncio.sleep(self._seconds)


def _newest(archive: Archive, tenant_id: str | None, limit: int) -> list[tuple[dict[str, Any], bytes]]:
    # Batches of one round lie tenant by tenant, so all are looked at: time is in the records.
    found: list[tuple[dict[str, Any], bytes]] = []
    for batch in archive.backwards():
        for tenant, _, _, event, who, _ in batch["records"]:
            if tenant_id in (None, tenant) and (record := parsed(event)):
                found.append((record, who))
        if len(found) > 4 * limit:
            found = _last(found, limit)
    return _last(found, limit)


def _links(archive: Archive, tenant_id: str, below: int) -> Iterator[list[Link]]:
    for batch in archive.backwards():
        if batch["records"][0][0] == tenant_id and batch["records"][0][1] < below:
            yield [Link(*record[1:]) for record in reversed(batch["records"]) if record[1] < below]


def _last(found: list[tuple[dict[str, Any], bytes]], limit: int) -> list[tuple[dict[str, Any], bytes]]:
    return sorted(found, key=lambda one: (one[0]["ts"], one[0]["id"]))[-limit:]
