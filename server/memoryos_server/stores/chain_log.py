"""Events that are written without a change, such as reads and refusals: they go into their chain at once.

An outbox is there for what must be written together with a change, which lies on another node of a cluster than the chain.
Without a change it would only be a second write of each event, and a second reading.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.stores.chain import Taken
from memoryos_server.stores.chain_adding import Adder
from memoryos_server.stores.redis_audit import People, RedisAudit, about_whom
from memoryos_server.stores.redis_chain import PAGE, Batch, ChainBlockedError

_log = Sparing(logging.getLogger(__name__))


class ChainLog:
    """The port `Recorder`, for one caller at a time, who gives events that were not written again before any others.

    Args:
        audit: Makes records, and takes those into an outbox whose chain cannot be written.
        adder: Chains them.
    """

    def __init__(self, audit: RedisAudit, adder: Adder) -> None:
        self._audit = audit
        self._adder = adder
        self._writer = os.urandom(8).hex()

    async def append(self, events: Sequence[AuditEvent]) -> None:
        """Records events durably, in order within a tenant. The same events given again are not written again.

        Raises:
            BackendDown: The store does not answer. Some of several tenants' events may have been written.
        """
        tenants: dict[str, list[AuditEvent]] = {}
        for event in events:
            tenants.setdefault(event.tenant_id, []).append(event)
        people = await self._audit.people(events)
        try:
            for tenant, its in tenants.items():
                for number, start in enumerate(range(0, len(its), PAGE)):
                    some = its[start : start + PAGE]
                    name = hashlib.blake2b("".join(one.id for one in some).encode(), digest_size=8).hexdigest()
                    await self._chain(tenant, some, people, Batch(f"{self._writer}:{number}", name))
        finally:
            self._audit.some.set()  # the head is signed soon

    async def _chain(self, tenant: str, events: list[AuditEvent], people: People, batch: Batch) -> None:
        now = time.time_ns() // 1_000_000
        taken = []
        for number, event in enumerate(events):
            about = about_whom(event, people)
            stored = self._audit.stored(event, about[1], about[0].id) if about else self._audit.stored(event)
            taken.append(Taken(None, f"{now}-{number}", *stored))
        try:
            await self._adder.add(tenant, taken, batch)
        except BackendDown:
            raise
        except ChainBlockedError as error:
            _log.error("events wait in the outbox: %s; `memoryos audit verify` says more", error)
            await self._audit.append(events)
        except Exception as error:  # such as a key that holds something else
            self._adder.forget(tenant)
            _log.error("events wait in the outbox, for the chain of %s cannot be written: %s", tenant, error)
            await self._audit.append(events)
