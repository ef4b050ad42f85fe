"""Adds up what chats cost, and writes it once in a while: a chat itself waits for nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import date, datetime

from memoryos_server.domain.core.behind import WrittenBehind
from memoryos_server.domain.core.faults import Fault
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.core.tokens import Tokens
from memoryos_server.domain.ports.usage import Spent, Usage, UsageStore

_log = Sparing(logging.getLogger(__name__))

MOST_WAITING = 20_000
"""Sums that wait while the store is down; what does not fit is lost, and the log says so."""

_Key = tuple[date, str, str, str]


class Meter(WrittenBehind):
    """Counts what is spent. An async context manager that writes what waits when it is left.

    What was counted within the last interval is lost when the process dies. A batch whose writing failed midway is written
    again as the same batch, so that nothing counts twice.

    Args:
        store: Where usage is kept.
        interval: Seconds between writes.
        clock: The present time, UTC.
        most: `MOST_WAITING`.
    """

    def __init__(
        self,
        store: UsageStore,
        *,
        interval: float = 2.0,
        clock: Callable[[], datetime] = utc_now,
        most: int = MOST_WAITING,
    ) -> None:
        super().__init__("counts of usage", interval)
        self._store = store
        self._clock = clock
        self._most = most
        self._writer = uuid7()
        self._number = 0
        self._batch: list[Usage] = []
        self._waiting: dict[_Key, Spent] = {}

    def count(self, tenant_id: str, key_id: str, model: str, tokens: Tokens) -> None:
        """Counts a chat; returns at once.

        Args:
            tenant_id: The tenant of the call.
            key_id: The id of its key.
            model: The model's name, one of a bounded number.
            tokens: What it cost.
        """
        key = (self._clock().date(), tenant_id, key_id, model)
        if key not in self._waiting and len(self._waiting) >= self._most:
            _log.warning("usage is lost: too much waits for the store")
            return
        self._waiting[key] = self._waiting.get(key, Spent()) + _spent(tokens)

    async def write(self) -> None:
        """As `WrittenBehind.write`."""
        async with self._writing:
            while self._batch or self._waiting:
                if not self._batch:
                    self._batch = list(self._taken())
                    self._number += 1
                try:
                    await self._store.add(self._writer, self._number, self._batch)
                except Fault:
                    raise
                except Exception as error:  # written again it would fail again, and keep all others waiting
                    _log.error("usage is lost, it cannot be written: %s", type(error).__name__)
                self._batch = []

    def _taken(self) -> Iterator[Usage]:
        waiting, self._waiting = self._waiting, {}
        return (Usage(*key, spent) for key, spent in waiting.items())


def _spent(tokens: Tokens) -> Spent:
    if tokens.estimated:
        return Spent(
            requests=1,
            injected=tokens.injected,
            estimated_requests=1,
            estimated_input=tokens.input,
            estimated_output=tokens.output,
        )
    return Spent(1, tokens.input, tokens.output, tokens.cached, tokens.reasoning, tokens.injected)
