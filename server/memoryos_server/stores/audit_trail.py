"""Reads the events of a tenant back, from the newest in the chain to the oldest in the archive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.ports.audit import Wanted
from memoryos_server.stores.archive import ArchiveError
from memoryos_server.stores.chain import Link
from memoryos_server.stores.redis_audit import Named, RedisAudit, parsed
from memoryos_server.stores.redis_chain import RedisChain
from memoryos_server.stores.retention import Retention

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATE_MILLIS = 3_600_000
"""So much earlier than an event happened, by the servers' clocks, it may have been written, by the store's."""


class ChainTrail:
    """The port `AuditTrail`.

    What is asked for is chained first, so that what happened a moment ago is seen too, and a page begins at a number that no
    later event moves.

    Args:
        audit: Opens events.
        chain: The chains.
        retention: The archive.
        sequence: Chains what is not chained yet.
    """

    def __init__(
        self, audit: RedisAudit, chain: RedisChain, retention: Retention, sequence: Callable[[], Awaitable[None]]
    ) -> None:
        self._audit = audit
        self._chain = chain
        self._retention = retention
        self._sequence = sequence

    async def page(self, wanted: Wanted, limit: int, below: int | None) -> tuple[list[AuditEvent], int | None]:
        """Events that are wanted, the newest first, and where the next page begins, None if there is none.

        Raises:
            BackendDown: The store does not answer, or the archive cannot be read.
        """
        if below is None:
            await self._sequence()
        wants = _filter(wanted, await self._audit.named(wanted.tenant_id, wanted.user_id))
        floor = int((wanted.after - _EPOCH) / timedelta(milliseconds=1)) - _LATE_MILLIS if wanted.after else 0
        found: list[tuple[dict[str, Any], bytes]] = []
        last = 0
        try:
            async for link in self._back(wanted.tenant_id, below):
                if link.millis < floor:
                    break
                if (record := wants(link.event)) is None:
                    continue
                if len(found) == limit:
                    return await self._opened(wanted, found), last
                found.append((record, link.who))
                last = link.number
        except (ArchiveError, OSError) as error:
            raise BackendDown("The archive of audit events cannot be read") from error
        return await self._opened(wanted, found), None

    async def total(self, tenant_id: str) -> int:
        """How many events were ever recorded of a tenant."""
        return await self._audit.total(tenant_id)

    async def _opened(self, wanted: Wanted, found: list[tuple[dict[str, Any], bytes]]) -> list[AuditEvent]:
        events = await self._audit.opened(found)
        if (
            wanted.user_id
        ):  # who asks for somebody by name need not be told it by the record, which may not have kept it
            events = [event._replace(user_id=wanted.user_id) for event in events]
        # Reads are recorded up to a second later than they happened: on a page, what happened last stands first.
        return sorted(events, key=lambda event: (event.timestamp, event.id), reverse=True)

    async def _back(self, tenant_id: str, below: int | None) -> AsyncIterator[Link]:
        while links := await self._chain.back(tenant_id, below):
            for link in links:
                yield link
            below = links[-1].number
        # What is archived meanwhile is found there.
        if below is None:
            below = (await self._chain.head(tenant_id)).count + 1
        async for batch in self._retention.back(tenant_id, below):
            for link in batch:
                yield link


def _filter(wanted: Wanted, named: Named | None) -> Callable[[bytes], dict[str, Any] | None]:
    """What gives a stored record if it is wanted, else None."""
    # Most records of a large tenant are not wanted: looking for bytes costs a tenth of reading the record.
    needles = [named.user.encode()] if named else []
    if wanted.event_type:
        needles.append(orjson.dumps(wanted.event_type))
    before = (wanted.before - _EPOCH) // timedelta(microseconds=1) if wanted.before else None
    after = (wanted.after - _EPOCH) // timedelta(microseconds=1) if wanted.after else None

    def wants(event: bytes) -> dict[str, Any] | None:
        if not all(needle in event for needle in needles) or (record := parsed(event)) is None:
            return None
        if (named and not named.is_in(record)) or (wanted.event_type and record["type"] != wanted.event_type):
            return None
        if (before is not None and record["ts"] >= before) or (after is not None and record["ts"] <= after):
            return None
        return record

    return wants
