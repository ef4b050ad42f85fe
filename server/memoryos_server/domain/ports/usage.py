"""What chats cost, kept by day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date
from operator import add, attrgetter
from typing import Protocol

from memoryos_server.domain.core.caller import Budget


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent: sums over chats.

    Attributes:
        requests: Chats whose answer began.
        input: Tokens that providers say they read.
        output: Tokens that they say they wrote.
        cached: The part of the input that they had cached.
        reasoning: The part of the output that is reasoning.
        injected: The part of all input that is memories, estimated.
        estimated_requests: Those of the requests of which providers said nothing.
        estimated_input: What these read, estimated; not in `input`.
        estimated_output: What these wrote, estimated; not in `output`.
    """

    requests: int = 0
    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0
    injected: int = 0
    estimated_requests: int = 0
    estimated_input: int = 0
    estimated_output: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*map(add, _sums(self), _sums(other)))


_sums = attrgetter(*(field.name for field in fields(Spent)))


@dataclass(frozen=True, slots=True)
class Usage:
    """What one key spent on one model on one day.

    Attributes:
        day: The day, UTC.
        tenant_id: The tenant of the calls.
        key_id: The key's id; never the key, and nothing of whom it spoke for.
        model: The model's name, `other` for those beyond the bound.
        spent: How much.
    """

    day: date
    tenant_id: str
    key_id: str
    model: str
    spent: Spent


@dataclass(frozen=True, slots=True)
class Refusal:
    """A budget has no room.

    Attributes:
        bound: Which of its bounds is reached: `requests` or `tokens`.
        seconds: After how long it has room again, at least 1.
    """

    bound: str
    seconds: int


class BudgetStore(Protocol):
    """What keys have used of their budgets, by all servers."""

    async def admit(self, key_id: str, budget: Budget, waiting: int) -> Refusal | None:
        """Counts a request, unless a bound is reached.

        Args:
            key_id: The key's id.
            budget: What it may use.
            waiting: Tokens that are used and not written yet.
        """

    async def spend(self, writer: str, batch: int, key_id: str, day: date, tokens: int) -> None:
        """Counts tokens of a day. A batch given again counts once, as for `UsageStore.add`, per key."""


class UsageStore(Protocol):
    """What is spent, added up by day, tenant, key and model."""

    async def add(self, writer: str, batch: int, usage: Sequence[Usage]) -> None:
        """Adds to what is kept. A batch given again, after an error, counts once, if nothing newer of its writer did.

        Args:
            writer: Who writes: one name per process.
            batch: Its number, higher than those before.
            usage: What to add.
        """

    async def tenants(self, day: date) -> list[str]:
        """The tenants of which something is kept of a day, in order."""

    async def read(self, tenant_id: str, days: Sequence[date]) -> list[Usage]:
        """What is kept of a tenant's days, in no order."""
