"""What leaves memory in time: old audit events, into archive files.

Marks of events leave by themselves three days after they were made (`redis_marks.LIFE`); an event's state is then that of its
episode. Dead letters stay until somebody looks at them. Audit events alone would grow for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from memoryos_server.domain.core.faults import Fault, Invalid
from memoryos_server.stores.archive import Archive, ArchiveError
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import PARTITIONS, Partition

_log = logging.getLogger(__name__)

_PAGE = 256
_SECONDS = 3600.0
_SOON_SECONDS = 30.0
_DAY_MILLIS = 86_400_000


class Retention:
    """Moves old audit events into the archive, once an hour while the context lasts.

    A batch is removed from the store once it is durable in the archive. After a crash in between the last batch is removed
    again, so none is there twice.

    Args:
        client: The store.
        directory: Where the archive lies.
        audit_days: How old an event must be, in days; 0: none is moved.
        seconds: How often.
        shared: Whether other servers have the store, too: what lies in a directory of ours they could not read.
    """

    def __init__(
        self, client: Client, directory: Path, *, audit_days: float, seconds: float = _SECONDS, shared: bool = False
    ) -> None:
        self._client = client
        self._directory = directory / "audit"
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
            moved = 0
            for number in range(PARTITIONS):
                stream = Partition(number).audit
                while page := await self._client.run("XRANGE", stream, "-", until, "COUNT", _PAGE):
                    records = [_record(entry, fields) for entry, fields in page]
                    await asyncio.to_thread(archive.append, number, records)
                    await self._client.run("XDEL", stream, *(entry for entry, _ in page))
                    moved += len(page)
            return moved

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Moves nothing while the block lasts: what is read of the store and of the archive in it has each event once."""
        async with self._lock:
            await self._opened()
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

    async def _opened(self) -> Archive:
        if self._archive is None:
            archive = await asyncio.to_thread(Archive, self._directory)
            if archive.last is not None:
                ids = [record[1] for record in archive.last["records"]]
                await self._client.run("XDEL", Partition(archive.last["place"]).audit, *ids)
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
            await asyncio.sleep(self._seconds)


def _record(entry: bytes, fields: Mapping[bytes, bytes]) -> list[Any]:
    event = fields[b"e"]
    tenant = ""
    with contextlib.suppress(ValueError, KeyError):  # whatever it is, it is kept
        tenant = str(orjson.loads(event)["tenant"])
    return [tenant, entry.decode(), event, fields[b"w"]]


def _newest(archive: Archive, tenant_id: str | None, limit: int) -> list[tuple[dict[str, Any], bytes]]:
    # Batches of one round lie partition by partition, so all are looked at: time is in the records.
    found: list[tuple[dict[str, Any], bytes]] = []
    for batch in archive.backwards():
        for tenant, _, event, who in batch["records"]:
            if tenant_id in (None, tenant):
                found.append((orjson.loads(event), who))
        if len(found) > 4 * limit:
            found = _last(found, limit)
    return _last(found, limit)


def _last(found: list[tuple[dict[str, Any], bytes]], limit: int) -> list[tuple[dict[str, Any], bytes]]:
    return sorted(found, key=lambda one: (one[0]["ts"], one[0]["id"]))[-limit:]
