"""What a key may use: requests of a minute, tokens of a day.

Requests are counted before a chat goes on, tokens once they are known. So a budget of tokens is soft: chats under way when
it is spent are answered. While the store does not answer nobody is refused, for chats must go on without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import date, datetime

from memoryos_server.domain.core.behind import WrittenBehind
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import BackendDown, Fault, TooMany
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.patience import in_a_hurry
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.core.tokens import Tokens
from memoryos_server.domain.ports.usage import BudgetStore

_log = Sparing(logging.getLogger(__name__))

MOST_WAITING = 20_000
"""Keys whose tokens wait to be written; what does not fit is not held against them."""


class Budgets(WrittenBehind):
    """Holds keys to their budgets. An async context manager that writes what waits when it is left.

    Args:
        store: What was used, by all servers.
        refused: Told of every refusal which bound was reached: `requests` or `tokens`.
        interval: Seconds between writes of tokens.
        clock: The present time, UTC.
    """

    def __init__(
        self,
        store: BudgetStore,
        *,
        refused: Callable[[str], None] = lambda bound: None,
        interval: float = 0.5,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__("used budgets", interval)
        self._store = store
        self._refused = refused
        self._clock = clock
        self._writer = uuid7()
        self._number = 0
        self._batch: dict[tuple[str, date], int] = {}
        self._waiting: dict[tuple[str, date], int] = {}

    async def admit(self, who: Caller) -> None:
        """Lets a request pass that its key's budget has room for, and counts it. A key without one costs nothing.

        Raises:
            TooMany: A bound is reached; `retry_after` says until when.
        """
        budget = who.budget
        if not budget:
            return
        place = (who.key_id, self._clock().date())
        waiting = self._waiting.get(place, 0) + self._batch.get(place, 0)
        try:
            with in_a_hurry():
                refusal = await self._store.admit(who.key_id, budget, waiting)
        except BackendDown as fault:
            _log.warning("a budget is not looked at: %s", fault.reason)
            return
        if refusal is None:
            return
        self._refused(refusal.bound)
        if refusal.bound == "tokens":
            text, number = "This key has used its tokens of the day, {}", budget.tokens_per_day
        else:
            text, number = "This key has used its requests of a minute, {}", budget.requests_per_minute
        raise TooMany(
            text.format(number),
            retry_after=refusal.seconds,
            metadata={"limit": f"key_{refusal.bound}", "budget": str(number)},
        )

    def spend(self, who: Caller, tokens: Tokens) -> None:
        """Counts what a chat of a key with a budget of tokens cost; returns at once."""
        if not who.budget.tokens_per_day:
            return
        place = (who.key_id, self._clock().date())
        if place in self._waiting or len(self._waiting) < MOST_WAITING:
            self._waiting[place] = self._waiting.get(place, 0) + tokens.input + tokens.output

    async def write(self) -> None:
        """As `WrittenBehind.write`."""
        async with self._writing:
            while self._batch or self._waiting:
                if not self._batch:
                    self._batch, self._waiting = self._waiting, {}
                    self._number += 1
                for key_id, day in list(self._batch):
                    try:
                        await self._store.spend(self._writer, self._number, key_id, day, self._batch[key_id, day])
                    except Fault:
                        raise
                    except Exception as error:  # written again it would fail again, and keep all others waiting
                        _log.error("a used budget is lost, it cannot be written: %s", type(error).__name__)
                    del self._batch[key_id, day]
