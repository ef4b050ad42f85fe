"""Which stores are up, and so what can be served.

Probes are real, one task for each store; everybody else reads the newest answer, so that no call waits for a probe.
The outcome goes to the gRPC health service, to `SystemService`, to metrics and into every answer given while a store is
down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from memoryos_server.rpc.grpc_health import HealthBoard
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.rpc.state import Mode, Phase, ServingState

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

Probe = Callable[[], Awaitable[object]]
"""Asks a store something small; raises if it does not answer."""


class Breaker(Protocol):
    """Notices between probes that a store does not answer."""

    @property
    def is_open(self) -> bool:
        """Whether calls fail at once."""

    @property
    def is_doubtful(self) -> bool:
        """Whether an answer is overdue."""

    def follow(self, follower: Callable[[], None]) -> None:
        """Has `follower` called after each change."""


WITHOUT_STORES = frozenset({"memoryos.v1.ChatService", "memoryos.v1.SystemService"})
"""Services that are of use with both stores down: chat passes through, probes are answered."""

_INTERVAL = 0.7
_TIMEOUT = 0.7
_AGAIN = 1.5
"""Seconds after which a store that still owes a probe its answer is asked anew. Sooner would do harm to a slow one, which
would have to take a further connection; later would let its breaker open later."""

LATE_SECONDS = 5.0
"""How long a probe that is overdue is still listened to: its store is down until it answers, and slow if it does."""


class Health:
    """Probes the stores from entry to exit.

    Entering waits for the first probes, and for them only: the server starts with a store down, too.
    """

    def __init__(
        self,
        *,
        redis: Probe,
        vectors: Probe,
        board: HealthBoard,
        metrics: Metrics,
        logger: FilteringBoundLogger,
        ready_when_noop: bool = False,
        breakers: Mapping[str, Breaker] | None = None,
        without_stores: Collection[str] = WITHOUT_STORES,
        interval: float = _INTERVAL,
        timeout: float = _TIMEOUT,
    ) -> None:
        """Keeps what is probed and who is told.

        Args:
            redis: Probes the Redis-side store.
            vectors: Probes the vector store.
            board: The gRPC health service.
            metrics: Gets `memoryos_backend_up`.
            logger: Told of changes.
            ready_when_noop: Whether chat that only passes through counts as readiness.
            breakers: Backend -> its breaker. What one notices is looked at without waiting for the next probe.
            without_stores: Services that are of use with both stores down.
            interval: Seconds from one probe to the next. With the timeout, a change is seen within their sum.
            timeout: Seconds after which a store that has not answered is down; of one that is known to be slow, twice
                as long as it took.
        """
        self._probes: dict[str, Probe] = {"redis": redis, "qdrant": vectors}
        self._board = board
        self._metrics = metrics
        self._logger = logger
        self._without_stores = without_stores
        self._interval, self._timeout = interval, timeout
        self._state = ServingState(Phase.STARTING, redis=False, qdrant=False, ready_when_noop=ready_when_noop)
        self._known: dict[str, bool] = {}
        self._hurry = {name: asyncio.Event() for name in self._probes}
        self._breakers = dict(breakers or {})
        for name, breaker in self._breakers.items():
            breaker.follow(partial(self._noticed, name))
            self._noticed(name)
        self._patience = dict.fromkeys(self._probes, timeout)
        self._asked: set[asyncio.Task[bool]] = set()
        self._overdue: dict[str, asyncio.Task[bool]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def state(self) -> ServingState:
        """What can be served."""
        return self._state

    async def __aenter__(self) -> Health:
        first = await asyncio.gather(*(self._ask(name) for name in self._probes))
        for name, up in zip(self._probes, first, strict=True):
            self._set(name, up)
        self._tasks = [asyncio.create_task(self._watch(name), name=f"probe-{name}") for name in self._probes]
        return self

    async def __aexit__(self, *_: object) -> None:
        ending = [*self._tasks, *self._asked]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        self._tasks = []

    def serve(self) -> None:
        """Says that the server takes calls from now on."""
        self._change(replace(self._state, phase=Phase.SERVING))

    async def drain(self) -> None:
        """Says NOT_SERVING everywhere from now on."""
        self._change(replace(self._state, phase=Phase.DRAINING))

    async def _watch(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            self._set(name, await self._ask(name))
            if late := self._overdue.pop(name, None):
                await asyncio.wait({late}, timeout=started + _AGAIN - loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.05, self._interval - (loop.time() - started))):
                    await self._hurry[name].wait()
            self._hurry[name].clear()

    def _noticed(self, name: str) -> None:
        breaker = self._breakers[name]
        self._metrics.breaker_open.labels(name).set(breaker.is_open)
        if self._known.get(name, False) and breaker.is_open:
            self._set(name, False)
        if self._known.get(name, False) == breaker.is_doubtful:
            self._hurry[name].set()

    async def _ask(self, name: str) -> bool:
        """Whether a store answers in time. If not, an answer that comes later says by itself that the store is up."""
        probe = asyncio.create_task(self._answers(name), name=f"ask-{name}")
        self._asked.add(probe)
        probe.add_done_callback(self._asked.discard)
        await asyncio.wait({probe}, timeout=self._patience[name])
        if probe.done():
            return probe.result()
        self._logger.debug("probe_late", backend=name)
        self._overdue[name] = probe
        probe.add_done_callback(partial(self._came_late, name))
        return False

    async def _answers(self, name: str) -> bool:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(LATE_SECONDS):
                await self._probes[name]()
        except Exception as error:
            self._logger.debug("probe_failed", backend=name, error=type(error).__name__)
            self._patience[name] = self._timeout
            return False
        # A slow store is not to be down at each second probe. One that hangs is noticed by its breaker meanwhile.
        self._patience[name] = min(max(self._timeout, 2 * (loop.time() - started)), LATE_SECONDS)
        return True

    def _came_late(self, name: str, probe: asyncio.Task[bool]) -> None:
        if not probe.cancelled() and probe.result():
            self._set(name, True)

    def _set(self, name: str, up: bool) -> None:
        self._metrics.backend_up.labels(name).set(up)
        if self._known.get(name) is not up:
            self._known[name] = up
            if up:
                self._logger.info("backend_up", backend=name)
            else:
                self._logger.warning("backend_down", backend=name)
            self._change(replace(self._state, redis=up) if name == "redis" else replace(self._state, qdrant=up))

    def _change(self, state: ServingState) -> None:
        self._state = state
        some_store = state.mode is not Mode.NOT_READY
        for service in self._board.services:
            alone = service in self._without_stores and state.phase is Phase.SERVING
            self._board.set(service, some_store or alone if service else state.ready)
