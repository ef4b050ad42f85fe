"""How much accepted work may wait, in all and of one tenant; beyond it new work is refused, and what was accepted is kept.

The bounds are soft: what other processes accepted since the last look is not known here, so that they may be passed by what is
accepted within a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import NoReturn

from memoryos_server.domain.core.faults import Fault, TooMany
from memoryos_server.domain.memory.counts import Counts, Uncounted
from memoryos_server.domain.ports import Queue

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
"""When a refused caller should come again."""

_MESSAGES = {
    "backlog": "Too much accepted work waits to be done",
    "tenant_backlog": "Too much accepted work of this tenant waits to be done",
}
_LOOK_SECONDS = 1.0
_TENANTS_SECONDS = 5.0


class Backlog:
    """Knows, nearly, how many entries are open, and lets in what there is room for.

    Args:
        queue: The ledger.
        most: Of all tenants, entries; 0: without end.
        most_of_tenant: Of one tenant, entries; 0: as many as `most` lets in.
        counts: Is told what was refused.
        look_seconds: The pause between two looks at the ledger.
        tenants_seconds: The pause between two countings by tenant, which are made only while a tenant may be over its bound.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        most: int = 0,
        most_of_tenant: int = 0,
        counts: Counts | None = None,
        look_seconds: float = _LOOK_SECONDS,
        tenants_seconds: float = _TENANTS_SECONDS,
    ) -> None:
        self._queue = queue
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._counts = counts or Uncounted()
        self._look_seconds = look_seconds
        self._tenants_seconds = tenants_seconds
        self._total = 0
        self._of: Counter[str] = Counter()
        self._by_tenant = False
        self._next_tenants = 0.0

    def admit(self, tenant_id: str, entries: int = 1) -> None:
        """Lets work in, and counts it as waiting.

        Raises:
            TooMany: Too much waits already. Nothing was accepted.
        """
        if limit := self.full(tenant_id, entries):
            self.refuse(limit)
        self._total += entries
        if self._by_tenant:
            self._of[tenant_id] += entries

    def full(self, tenant_id: str, entries: int = 1) -> str:
        """The bound at which there is no room for so much more: `backlog` or `tenant_backlog`; "" if there is room."""
        if self._most and self._total + entries > self._most and self._total:
            return "backlog"
        waits = self._of[tenant_id] if self._by_tenant else 0
        if self._most_of_tenant and waits + entries > self._most_of_tenant and waits:
            return "tenant_backlog"
        return ""

    def refuse(self, limit: str) -> NoReturn:
        """Says that there is no room.

        Args:
            limit: What `full` said.

        Raises:
            TooMany: Always.
        """
        self._counts.refused(limit)
        raise TooMany(_MESSAGES[limit], retry_after=RETRY_SECONDS, metadata={"limit": limit})

    def give_back(self, tenant_id: str, entries: int = 1) -> None:
        """Says that what was let in does not wait: the store did not accept it, or had it already."""
        self._total = max(0, self._total - entries)
        if self._by_tenant:
            self._of[tenant_id] = max(0, self._of[tenant_id] - entries)

    async def look(self) -> None:
        """Counts what is open.

        Raises:
            BackendDown: The ledger does not answer; what was known stands.
        """
        self._total = sum((await self._queue.backlog()).values())
        if not self._most_of_tenant or self._total < self._most_of_tenant:
            self._by_tenant = False
            self._of.clear()
            return
        now = asyncio.get_running_loop().time()
        if now >= self._next_tenants:
            self._of = Counter(await self._queue.open_by_tenant())
            self._by_tenant = True
            self._next_tenants = now + self._tenants_seconds

    async def run(self) -> None:
        """Looks for ever; if nothing is bounded there is nothing to look for."""
        while self._most or self._most_of_tenant:
            try:
                await self.look()
            except Fault:
                pass  # the ledger is down: what it accepted so far stands, and nothing is accepted now
            except Exception:
                log.exception("the backlog could not be counted")
            await asyncio.sleep(self._look_seconds)
