"""The sequencer: takes recorded events out of the outboxes and puts each into the chain of its tenant.

Every server chains what it has written itself; outboxes are looked through as a whole only at the start and now and then, for
what a server that was killed has left. Several servers need no lease: `RedisChain.add` adds only to the head that it was
told, and the head says how far each outbox was taken. So an event is chained once, whoever is stopped or killed wherever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.stores.chain import Taken
from memoryos_server.stores.chain_adding import Adder
from memoryos_server.stores.redis_audit import RedisAudit, whose
from memoryos_server.stores.redis_chain import PAGE, ChainBlockedError
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import PARTITIONS, Partition

_log = logging.getLogger(__name__)

_GATHER_SECONDS = 0.3
_SWEEP_SECONDS = 15.0
_DRAIN_SECONDS = 5.0
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
        adder: Makes chains longer.
        gather_seconds: How long events may gather, so that many share a write.
        sweep_seconds: How often all outboxes are looked through.
        refused: Told how many entries were found that no server wrote.
    """

    def __init__(
        self,
        client: Client,
        audit: RedisAudit,
        adder: Adder,
        *,
        gather_seconds: float = _GATHER_SECONDS,
        sweep_seconds: float = _SWEEP_SECONDS,
        refused: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._client = client
        self._audit = audit
        self._adder = adder
        self._gather, self._sweep = gather_seconds, sweep_seconds
        self._lock = asyncio.Lock()
        self._refused = refused
        self._blocked = Sparing(_log)
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
        try:
            lengths = await self._client.lengths([Partition(number).audit for number in range(PARTITIONS)])
        except BackendDown:  # of a cluster a part may be away
            lengths = [1] * PARTITIONS
        await self.chain([number for number, length in enumerate(lengths) if length])

    async def chain(self, partitions: Iterable[int]) -> None:
        """Chains what lies in the outboxes of some partitions.

        Raises:
            BackendDown: As `now`.
        """
        async with self._lock:
            left = [_Reading(number) for number in sorted(partitions)]
            blocked: set[str] = set()
            down: list[BackendDown] = []
            try:
                while left:
                    some, left = left[:_TOGETHER], left[_TOGETHER:]
                    left += await self._round(some, blocked, down)
                    await self._adder.sign(soon=True)  # with much to do this takes long
            finally:
                await self._adder.sign()
            if down:
                raise down[0]

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
                try:
                    await self.chain(numbers)
                finally:
                    if loop.time() >= swept + self._sweep:
                        swept = loop.time()
                        await self.now()
            except BackendDown:
                for number in numbers:
                    self._audit.wrote(number)
                await asyncio.sleep(self._gather)
            except Exception:
                _log.exception("recorded events were not chained; they stay in the outbox and are tried again")
                swept = loop.time()

    async def _round(self, readings: list[_Reading], blocked: set[str], down: list[BackendDown]) -> list[_Reading]:
        """Chains a page of each outbox; those that may have more.

        Of a cluster a part may be away, with some of the outboxes and chains: the others do not wait for it.

        Args:
            readings: The outboxes.
            blocked: Tenants whose events stay where they are; grows. Nothing of theirs is chained until all is read anew: what
                is chained stands for all before it in its outbox.
            down: What was said of what could not be read or chained; grows.
        """
        readings, pages = await self._pages(readings, down)
        events: dict[str, list[tuple[int, Taken]]] = {}
        for one, page in zip(readings, pages, strict=True):
            refused = []
            for entry, fields in page:
                if (taken := self._audit.taken(one.number, entry, fields)) is None:
                    refused.append(entry)
                else:
                    events.setdefault(whose(taken.event), []).append((one.number, taken))
            await self._refuse(one.number, refused)
        reach("audit.taken")
        done: dict[int, list[str]] = {}
        stuck: set[int] = set()
        for tenant, its in events.items():
            try:
                if tenant not in blocked and not await self._chained(tenant, [event for _, event in its]):
                    blocked.add(tenant)
            except BackendDown as error:
                down.append(error)
                blocked.add(tenant)
            for number, event in its:
                if tenant in blocked:
                    stuck.add(number)
                else:
                    done.setdefault(number, []).append(event.entry)
        reach("audit.chained")
        await self._client.batch([("XDEL", Partition(number).audit, *entries) for number, entries in done.items()])
        more = []
        for one, page in zip(readings, pages, strict=True):
            one.stuck += one.number in stuck
            if len(page) == PAGE and one.stuck < _MOST_STUCK:
                one.start = "(" + page[-1][0].decode()
                more.append(one)
        return more

    async def _pages(
        self, readings: list[_Reading], down: list[BackendDown]
    ) -> tuple[list[_Reading], list[list[tuple[bytes, dict[bytes, bytes]]]]]:
        """A page of each outbox that can be read."""
        commands = [("XRANGE", Partition(one.number).audit, one.start, "+", "COUNT", PAGE) for one in readings]
        try:
            return readings, await self._client.batch(commands)
        except BackendDown:
            if len(readings) == 1:
                raise
        alone = await asyncio.gather(*(self._client.run(*command) for command in commands), return_exceptions=True)
        read = []
        for one, page in zip(readings, alone, strict=True):
            if isinstance(page, BackendDown):
                down.append(page)
            elif isinstance(page, BaseException):
                raise page
            else:
                read.append((one, page))
        return [one for one, _ in read], [page for _, page in read]

    async def _refuse(self, partition: int, entries: list[bytes]) -> None:
        if entries and (count := await self._audit.refuse(partition, entries)):
            self._refused(count)
            self._blocked.error(
                "somebody changed or put in what waits to be chained, in %s; `memoryos audit verify` says more",
                Partition(partition).audit,
            )

    async def _chained(self, tenant: str, taken: list[Taken]) -> bool:
        """Chains events of a tenant; whether that could be done.

        Raises:
            BackendDown: The store does not answer.
        """
        try:
            await self._adder.add(tenant, sorted(taken, key=lambda one: (one.at, one.partition)))
        except BackendDown:
            raise
        except ChainBlockedError as error:
            self._blocked.error("recorded events stay in the outbox: %s; `memoryos audit verify` says more", error)
        except Exception as error:  # such as a key that holds something else: it must not stop the other tenants
            self._adder.forget(tenant)
            self._blocked.error(
                "recorded events of %s stay in the outbox, for its chain cannot be written: %s", tenant, error
            )
        else:
            return True
        return False
