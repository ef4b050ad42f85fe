"""Adds events to chains: the heads as this server knows them, and what keeps them signed apart from the store.

Whoever has events to chain goes through one `Adder`, so that of one server nobody gets in the other's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.time import utc_now
from memoryos_server.stores.chain import Taken, linked
from memoryos_server.stores.heads import HeadBrokenError, Signed, SignedHeads
from memoryos_server.stores.redis_chain import PAGE, Batch, ChainBlockedError, Head, RedisChain

_log = logging.getLogger(__name__)

_SIGN_SECONDS = 0.5
_MOST_HEADS = 4096
_TRIES = 50


class Adder:
    """Makes chains longer.

    Args:
        chain: The chains.
        heads: Where signed heads are kept.
    """

    def __init__(self, chain: RedisChain, heads: SignedHeads) -> None:
        self._chain = chain
        self._signed = heads
        self._lock = asyncio.Lock()
        self._heads: dict[str, Head] = {}
        self._to_sign: dict[str, tuple[int, bytes]] = {}
        self._distrusted: set[str] = set()
        self._signed_at = 0.0
        self._unwritable = False

    async def add(self, tenant: str, taken: Sequence[Taken], batch: Batch | None = None) -> None:
        """Makes a tenant's chain longer by those events that are not in it yet, in this order.

        Args:
            tenant: Whose chain.
            taken: The events; of one outbox the older are first, so that its place in the head stands for all before it.
            batch: What they are of, if they lie in no outbox; then at most `PAGE`.

        Raises:
            BackendDown: The store does not answer; the same may be added again.
            ChainBlockedError: The chain was tampered with, and nothing can be added to it.
        """
        async with self._lock:
            for _ in range(_TRIES):
                head = self._heads.get(tenant) or await self._looked_up(tenant)
                fresh = await self._fresh(head, taken)
                if not fresh:
                    return
                added = await self._chain.add(head, linked(head.count, head.hash, fresh[:PAGE]), batch)
                if added is None:
                    self.forget(tenant)  # another server was faster
                    continue
                if added is head:  # it was there already, and the head is another by now
                    added = await self._looked_up(tenant)
                self._heads[tenant] = added
                self._to_sign[tenant] = added.count, added.hash
                taken = fresh[PAGE:]
        raise BackendDown("Other servers are faster at one chain")

    async def _fresh(self, head: Head, taken: Sequence[Taken]) -> list[Taken]:
        """The events that are not in the chain yet.

        An outbox's place in the head says that those behind it are not. Those before it are looked up: somebody may have led
        the store to give ids of the far future, and ids of now behind them.
        """
        before = [one for one in taken if head.has(one)]
        if not before:
            return list(taken)
        there = await self._chain.among(head.tenant_id, before)
        return [one for one in taken if one.source not in there]

    def forget(self, tenant: str) -> None:
        """Looks the head of a chain up again before anything is added to it."""
        self._heads.pop(tenant, None)

    async def sign(self, *, soon: bool = False) -> None:
        """Keeps the heads of what was added to, and says if it cannot; those are tried again the next time.

        Args:
            soon: It will be called again: nothing is done if heads were kept a moment ago.
        """
        if soon and monotonic() <= self._signed_at + _SIGN_SECONDS:
            return
        now = utc_now().isoformat().replace("+00:00", "Z")
        to_sign, self._to_sign = self._to_sign, {}
        wanted = [Signed(tenant, *head, now) for tenant, head in to_sign.items() if tenant not in self._distrusted]
        self._signed_at = monotonic()
        if len(self._heads) > _MOST_HEADS:
            self._heads.clear()

        def write() -> tuple[list[Signed], OSError | None]:
            failed, why = [], None
            for signed in wanted:
                try:
                    self._signed.write(signed)
                except OSError as error:
                    failed.append(signed)
                    why = error
            return failed, why

        failed, error = await asyncio.to_thread(write) if wanted else ([], None)
        for signed in failed:
            self._to_sign.setdefault(signed.tenant_id, (signed.count, signed.hash))
        if error is not None and not self._unwritable:  # else it was said already, and this comes with every write
            _log.error("the signed heads of the audit chains cannot be kept in %s: %s", self._signed.directory, error)
        if wanted:
            self._unwritable = error is not None

    async def _looked_up(self, tenant: str) -> Head:
        """The head of a chain as it lies in the store; if it belies the signed one, that is not replaced any more.

        Raises:
            ChainBlockedError: It is not as it was written.
        """
        # First: what was signed by then is in what is read afterwards, whoever goes on meanwhile.
        signed, wrong = await asyncio.to_thread(self._read_signed, tenant)
        head = await self._chain.head(tenant)
        if not head.intact:  # what it says was taken may never have been
            raise ChainBlockedError(f"the head of the chain of {tenant} was changed")
        if signed is not None and not await self._continues(head, signed):
            wrong = f"it had {signed.count} events at {signed.at}, which are not all there any more"
        if wrong:
            if tenant not in self._distrusted:
                _log.error("the chain of %s cannot be held against its signed head, or belies it: %s", tenant, wrong)
            self._distrusted.add(tenant)
        self._heads[tenant] = head
        return head

    def _read_signed(self, tenant: str) -> tuple[Signed | None, str]:
        """The signed head of a chain, if there is one, and what is wrong with it."""
        try:
            return self._signed.read(tenant), ""
        except (HeadBrokenError, OSError) as error:
            return None, str(error) or type(error).__name__

    async def _continues(self, head: Head, signed: Signed) -> bool:
        if head.count < signed.count:
            return False
        if head.count == signed.count:
            return head.hash == signed.hash
        if signed.count <= head.archived:
            return True  # `memoryos audit verify` reads the archive
        link = await self._chain.link(head.tenant_id, signed.count)
        if link is None:  # it may have been archived since the head was read
            now = await self._chain.head(head.tenant_id)
            return now.intact and signed.count <= now.archived
        return link.hash == signed.hash
