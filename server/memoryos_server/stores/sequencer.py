"""The sequencer: takes recorded events out of the outboxes and puts each into the chain of its tenant.

Every server chains what it has written itself; outboxes are looked through as a whole only at the start and now and then, for
what a server that was killed has left. Several servers need no lease: `RedisChain.add` adds only to the head that it was
told, and the head says how far each outbox was taken. So an event is chained once, whoever is stopped or killed wherever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self

from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.core.time import utc_now
from memoryos_server.stores.chain import Taken, linked
from memoryos_server.stores.heads import HeadBrokenError, Signed, SignedHeads
from memoryos_server.stores.redis_audit import RedisAudit, taken_of, whose
from memoryos_server.stores.redis_chain import PAGE, ChainBlockedError, Head, RedisChain
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import PARTITIONS, Partition

_log = logging.getLogger(__name__)

_GATHER_SECONDS = 0.3
_SWEEP_SECONDS = 15.0
_DRAIN_SECONDS = 5.0
_SIGN_SECONDS = 0.5
_MOST_HEADS = 4096
_TRIES = 50
_TOGETHER = 16
"""So many outboxes are read at once."""
_MOST_STUCK = 32
"""So many pages of an outbox in which events stay are read at a time, for what may be chained behind them."""


@dataclass(slots=True)
class _Reading:
    """How far an outbox was read.

    Attributes:
        number: Whose.
        start: From where it is read on.
        stuck: In how many of its pages events stayed.
    """

    number: int
    start: str = "-"
    stuck: int = 0


class Sequencer:
    """Chains events in the background while the context lasts, and the last of them when it is left.

    Args:
        client: The store.
        audit: The outboxes.
        chain: The chains.
        heads: Where signed heads are kept.
        gather_seconds: How long events may gather, so that many share a write.
        sweep_seconds: How often all outboxes are looked through.
    """

    def __init__(
        self,
        client: Client,
        audit: RedisAudit,
        chain: RedisChain,
        heads: SignedHeads,
        *,
        gather_seconds: float = _GATHER_SECONDS,
        sweep_seconds: float = _SWEEP_SECONDS,
    ) -> None:
        self._client = client
        self._audit = audit
        self._chain = chain
        self._signed = heads
        self._gather, self._sweep = gather_seconds, sweep_seconds
        self._lock = asyncio.Lock()
        self._heads: dict[str, Head] = {}
        self._to_sign: dict[str, tuple[int, bytes]] = {}
        self._distrusted: set[str] = set()
        self._blocked = Sparing(_log)
        self._signed_at = 0.0
        self._unwritable = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="sequencer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        with contextlib.suppress(BackendDown, TimeoutError):  # it stays in the outbox, for whoever comes next
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self.chain(self._audit.written())

    async def now(self) -> None:
        """Chains all that lies in any outbox.

        Raises:
            BackendDown: The store does not answer. What was not chained is where it was.
        """
        lengths = await self._client.batch([("XLEN", Partition(number).audit) for number in range(PARTITIONS)])
        await self.chain([number for number, length in enumerate(lengths) if length])

    async def chain(self, partitions: Iterable[int]) -> None:
        """Chains what lies in the outboxes of some partitions.

        Raises:
            BackendDown: As `now`.
        """
        async with self._lock:
            left = [_Reading(number) for number in sorted(partitions)]
            blocked: set[str] = set()
            try:
                while left:
                    some, left = left[:_TOGETHER], left[_TOGETHER:]
                    left += await self._round(some, blocked)
                    if monotonic() > self._signed_at + _SIGN_SECONDS:  # with much to do this takes long
                        await self._sign()
            finally:
                await self._sign()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        swept = -self._sweep
        while True:
            again = swept + self._sweep - loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, again)):
                    await self._audit.some.wait()
                    await asyncio.sleep(self._gather)
            numbers = self._audit.written()
            try:
                if loop.time() >= swept + self._sweep:
                    await self.now()
                    swept = loop.time()
                await self.chain(numbers)
            except BackendDown:
                for number in numbers:
                    self._audit.wrote(number)
                await asyncio.sleep(self._gather)
            except Exception:
                _log.exception("recorded events were not chained; they stay in the outbox and are tried again")
                swept = loop.time()

    async def _round(self, readings: list[_Reading], blocked: set[str]) -> list[_Reading]:
        """Chains a page of each outbox; those that may have more.

        Args:
            readings: The outboxes.
            blocked: Tenants whose events stay where they are; grows. Nothing of theirs is chained until all is read anew: what
                is chained stands for all before it in its outbox.
        """
        pages = await self._client.batch(
            [("XRANGE", Partition(one.number).audit, one.start, "+", "COUNT", PAGE) for one in readings]
        )
        events: dict[str, list[Taken]] = {}
        for one, page in zip(readings, pages, strict=True):
            for entry, fields in page:
                events.setdefault(whose(fields.get(b"e", b"")), []).append(taken_of(one.number, entry, fields))
        reach("audit.taken")
        done: dict[int, list[str]] = {}
        stuck: set[int] = set()
        for tenant, taken in events.items():
            if tenant not in blocked and not await self._chained(tenant, taken):
                blocked.add(tenant)
            for event in taken:
                if tenant in blocked:
                    stuck.add(event.partition)
                else:
                    done.setdefault(event.partition, []).append(event.entry)
        reach("audit.chained")
        await self._client.batch([("XDEL", Partition(number).audit, *entries) for number, entries in done.items()])
        more = []
        for one, page in zip(readings, pages, strict=True):
            one.stuck += one.number in stuck
            if len(page) == PAGE and one.stuck < _MOST_STUCK:
                one.start = "(" + page[-1][0].decode()
                more.append(one)
        return more

    async def _chained(self, tenant: str, taken: list[Taken]) -> bool:
        """Chains events of a tenant; whether that could be done.

        Raises:
            BackendDown: The store does not answer.
        """
        try:
            await self._add(tenant, sorted(taken, key=lambda one: (one.at, one.partition)))
        except BackendDown:
            raise
        except ChainBlockedError as error:
            self._blocked.error("recorded events stay in the outbox: %s; `memoryos audit verify` says more", error)
        except Exception as error:  # such as a key that holds something else: it must not stop the other tenants
            self._heads.pop(tenant, None)
            self._blocked.error(
                "recorded events of %s stay in the outbox, for its chain cannot be written: %s", tenant, error
            )
        else:
            return True
        return False

    async def _add(self, tenant: str, taken: list[Taken]) -> None:
        """Makes a tenant's chain longer by those events that are not in it yet."""
        for _ in range(_TRIES):
            head = self._heads.get(tenant) or await self._looked_up(tenant)
            fresh = [one for one in taken if not head.has(one.partition, one.at)]
            if not fresh:
                return
            # Of one outbox the older are first, so that its place in the head stands for all before it.
            added = await self._chain.add(head, linked(head.count, head.hash, fresh[:PAGE]))
            if added is None:
                del self._heads[tenant]  # another server was faster
                continue
            self._heads[tenant] = added
            self._to_sign[tenant] = added.count, added.hash
            if len(fresh) <= PAGE:
                return
        raise BackendDown("Other servers are faster at one chain")

    async def _looked_up(self, tenant: str) -> Head:
        """The head of a chain as it lies in the store; if it belies the signed one, that is not replaced any more.

        Raises:
            ChainBlockedError: It is not as it was written.
        """
        head = await self._chain.head(tenant)
        if not head.intact:  # what it says was taken may never have been
            raise ChainBlockedError(f"the head of the chain of {tenant} was changed")
        try:
            signed = await asyncio.to_thread(self._signed.read, tenant)
            if signed is not None and not await self._continues(head, signed):
                raise HeadBrokenError(f"it had {signed.count} events at {signed.at}, which are not all there any more")
        except (HeadBrokenError, OSError) as error:
            if tenant not in self._distrusted:
                _log.error("the chain of %s cannot be held against its signed head, or belies it: %s", tenant, error)
            self._distrusted.add(tenant)
        self._heads[tenant] = head
        return head

    async def _continues(self, head: Head, signed: Signed) -> bool:
        if head.count < signed.count:
            return False
        if head.count == signed.count:
            return head.hash == signed.hash
        if signed.count <= head.archived:
            return True  # `memoryos audit verify` reads the archive
        link = await self._chain.link(head.tenant_id, signed.count)
        return link is not None and link.hash == signed.hash

    async def _sign(self) -> None:
        """Keeps the heads of what was added to, and says if it cannot; those are tried again the next time."""
        now = utc_now().isoformat().replace("+00:00", "Z")
        wanted = [
            Signed(tenant, *head, now) for tenant, head in self._to_sign.items() if tenant not in self._distrusted
        ]
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
        self._to_sign = {signed.tenant_id: (signed.count, signed.hash) for signed in failed}
        if error is not None and not self._unwritable:  # else it was said already, and this comes with every write
            _log.error("the signed heads of the audit chains cannot be kept in %s: %s", self._signed.directory, error)
        if wanted:
            self._unwritable = error is not None
