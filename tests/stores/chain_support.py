"""What the tests of the audit chains share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.stores.audit_trail import ChainTrail
from memoryos_server.stores.chain_adding import Adder
from memoryos_server.stores.chain_log import ChainLog
from memoryos_server.stores.chain_verify import Verifier
from memoryos_server.stores.heads import SignedHeads
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.retention import Retention
from memoryos_server.stores.sequencer import Sequencer


def event(number: int, tenant: str = "acme", user: str = "ann", kind: str = "memory.read", **more: Any) -> AuditEvent:
    """An event that tells its number."""
    resource = more.pop("resource", f"memory/{number}")
    return AuditEvent(
        uuid7(),
        utc_now(),
        kind,
        tenant,
        user,
        resource,
        "Test",
        "ok",
        "key_1",
        "192.0.2.7",
        details=str(number),
        **more,
    )


class Audited:
    """A store with all that chains, archives, reads and verifies its events.

    Args:
        store: The store.
        home: Where keys and archive lie.
    """

    def __init__(self, store: RedisStore, home: Path) -> None:
        self.store = store
        self.home = home
        self.heads = SignedHeads(home / "keys", store.manifest.store_id, store.manifest.secrets)
        self.sequencer, self.log = self.another(), self.logging()
        self.retention = self.kept()
        self.trail = ChainTrail(store.audit, store.chain, self.retention, self.sequencer.now)

    def another(self, **more: Any) -> Sequencer:
        """A sequencer as another process would have it."""
        return Sequencer(self.store.client, self.store.audit, Adder(self.store.chain, self.heads), **more)

    def logging(self) -> ChainLog:
        """What another process would write reads and refusals with."""
        return ChainLog(self.store.audit, Adder(self.store.chain, self.heads))

    def kept(self) -> Retention:
        """The archive as another process would open it."""
        return Retention(self.store.client, self.store.chain, self.sequencer.now, self.home / "archive", audit_days=90)

    async def verify(self, archive: Path | None = None, heads: SignedHeads | None = None) -> tuple[list[Any], Any]:
        """The problems found, and what was read."""
        where = archive or self.retention.directory
        verifier = Verifier(self.store.chain, self.store.audit, heads or self.heads, where)
        *problems, summary = [item async for item in verifier.run()]
        assert summary["problems"] == len(problems)
        return problems, summary

    async def intact(self) -> Any:
        """What was read; fails if anything is not as it was written."""
        problems, summary = await self.verify()
        assert problems == []
        return summary

    async def entries(self, tenant: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """The stream of a chain."""
        return list(await self.store.client.run("XRANGE", self.store.chain.key(tenant), "-", "+"))

    async def write_entries(self, tenant: str, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Puts another stream in the place of a chain's."""
        key = self.store.chain.key(tenant)
        adds = [("XADD", key, entry, *(part for pair in f.items() for part in pair)) for entry, f in entries]
        await self.store.client.batch([("DEL", key), *adds])
