"""The open window of the ledger: one stream a partition."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence

from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.ports import Entry
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.redis_turns import entry_id, open_turn
from memoryos_server.stores.scope import PARTITIONS, Partition
from memoryos_server.stores.sealing import SealBroken

log = logging.getLogger(__name__)

_PAGE = 64
"""Entries read at once: turns may be large, and only a page of them is held."""


class RedisQueue:
    """The port `Queue`.

    Args:
        client: The connection.
        subjects: Who is known.
    """

    def __init__(self, client: Client, subjects: RedisSubjects) -> None:
        self._client = client
        self._subjects = subjects

    async def open_entries(self) -> AsyncIterator[Entry]:
        """Every open entry of every partition, in order within a partition.

        Entries of an older epoch, or of a subject that is no more, are closed, not given. One that does not open is
        logged and stays.
        """
        for partition, length in zip(range(PARTITIONS), await self._lengths(), strict=True):
            if length:
                async for entry in self._open_in(Partition(partition)):
                    yield entry

    async def close(self, entries: Sequence[Entry]) -> None:
        """Forgets entries whose index writes are durable. Idempotent."""
        await self._close([entry.id for entry in entries])

    async def depth(self) -> int:
        """The number of open entries."""
        return sum(await self._lengths())

    async def _lengths(self) -> list[int]:
        return await self._client.batch([("XLEN", Partition(number).queue) for number in range(PARTITIONS)])

    async def _open_in(self, partition: Partition) -> AsyncIterator[Entry]:
        after = "-"
        while page := await self._client.run("XRANGE", partition.queue, after, "+", "COUNT", _PAGE):
            after = "(" + page[-1][0].decode()
            over = []
            epochs = await self._epochs(partition, {fields[b"s"].decode() for _, fields in page})
            for stream_id, fields in page:
                name = entry_id(partition.number, stream_id)
                subject_id = fields[b"s"].decode()
                # The epoch is asked of the store, not of the cache: an erasure elsewhere must hold here.
                if epochs[subject_id] != fields[b"e"]:
                    over.append(name)
                    continue
                entry = await self._entry(name, subject_id, fields)
                if entry is not None:
                    yield entry
            await self._close(over)

    async def _entry(self, name: str, subject_id: str, fields: dict[bytes, bytes]) -> Entry | None:
        subject = await self._subjects.by_id(subject_id)
        if subject is not None and subject.epoch != int(fields[b"e"]):
            self._subjects.forget(subject_id)
            subject = await self._subjects.by_id(subject_id)
        if subject is None or subject.epoch != int(fields[b"e"]):
            return None  # erased this moment; the next round closes it
        try:
            sealer = await self._subjects.sealer(subject)
            return Entry(name, subject, open_turn(sealer, fields[b"i"], fields[b"t"]))
        except SealBroken:
            log.error("queue entry %s cannot be opened; it stays", name)
        except Stale:
            log.debug("queue entry %s was erased this moment", name)
        return None

    async def _epochs(self, partition: Partition, subject_ids: set[str]) -> dict[str, bytes | None]:
        ids = sorted(subject_ids)
        found = await self._client.batch([("HGET", partition.subject(subject_id), "epoch") for subject_id in ids])
        return dict(zip(ids, found, strict=True))

    async def _close(self, names: Sequence[str]) -> None:
        by_partition: dict[int, list[str]] = {}
        for name in names:
            partition, _, stream_id = name.partition("/")
            by_partition.setdefault(int(partition), []).append(stream_id)
        await self._client.batch([("XDEL", Partition(number).queue, *ids) for number, ids in by_partition.items()])
