"""Budgets of keys, in real stores and over several servers."""

from __future__ import annotations

import asyncio
import time
from datetime import date, timedelta

import pytest
from redis import Redis

from memoryos_server.domain.admin.budgets import Budgets
from memoryos_server.domain.core.caller import Budget, Caller
from memoryos_server.domain.core.faults import TooMany
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.core.tokens import Tokens
from memoryos_server.domain.ports.usage import Refusal
from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import Connect, Valkey, until

TODAY = utc_now().date()


def caller(key: str = "key_1", **budget: int) -> Caller:
    return Caller("acme", "ann", frozenset({"chat"}), key, budget=Budget(**budget))


@pytest.fixture(autouse=True)
def amid_a_minute() -> None:
    """Waits for the next minute where the present one is nearly over: requests of the one before weigh less."""
    if (left := 60 - time.time() % 60) < 8:
        time.sleep(left + 0.1)


def set_back(admins: list[Redis], **fields: object) -> None:
    """Changes what is kept of the only key, on whichever server it lies."""
    changed = 0
    for admin in admins:
        for key in admin.keys("*:budget:*"):
            admin.hset(key, mapping=fields)  # type: ignore[arg-type]  # redis-py's own stubs take str keys only
            changed += 1
    assert changed == 1


async def test_requests_when_the_minute_is_full_then_refused_by_every_server_with_the_seconds_to_wait(
    store: RedisStore, connect: Connect
) -> None:
    budget = Budget(requests_per_minute=3)
    async with connect() as other:
        for server in (store, other, store):
            assert await server.budgets.admit("key_1", budget, 0) is None
        refusal = await other.budgets.admit("key_1", budget, 0)
        assert refusal is not None
        assert refusal.bound == "requests"
        assert 1 <= refusal.seconds <= 120
        assert await other.budgets.admit("key_2", budget, 0) is None


async def test_requests_when_minutes_go_by_then_those_before_weigh_less_and_then_nothing(
    store: RedisStore, admins: list[Redis]
) -> None:
    budget = Budget(requests_per_minute=10)
    assert await store.budgets.admit("key_1", budget, 0) is None
    minute = int(time.time() // 60)
    # Ten in the minute before, seen from this one: as many may come as have left the last sixty seconds.
    set_back(admins, minute=minute, requests=0, before=1000)
    refusal = await store.budgets.admit("key_1", budget, 0)
    assert refusal is not None
    assert refusal.seconds <= 60
    set_back(admins, minute=minute - 1, requests=5, before=1000)
    assert await store.budgets.admit("key_1", budget, 0) is None
    set_back(admins, minute=minute - 2, requests=1000, before=1000)
    assert await store.budgets.admit("key_1", budget, 0) is None


async def test_tokens_when_the_day_s_are_spent_then_refused_until_midnight(
    store: RedisStore, admins: list[Redis]
) -> None:
    budget = Budget(tokens_per_day=100)
    assert await store.budgets.admit("key_1", budget, 99) is None
    await store.budgets.spend("a", 1, "key_1", TODAY, 60)
    await store.budgets.spend("a", 1, "key_1", TODAY, 60)  # the same again
    assert await store.budgets.admit("key_1", budget, 39) is None
    assert isinstance(await store.budgets.admit("key_1", budget, 40), Refusal)
    await store.budgets.spend("b", 1, "key_1", TODAY, 40)
    refusal = await store.budgets.admit("key_1", budget, 0)
    assert refusal is not None
    assert refusal.bound == "tokens"
    assert 1 <= refusal.seconds <= 86_400
    await store.budgets.spend("a", 2, "key_1", TODAY - timedelta(days=1), 500)  # late, of a day that is over
    set_back(admins, day=(TODAY - date(1970, 1, 1)).days - 1)
    assert await store.budgets.admit("key_1", budget, 99) is None
    await store.budgets.spend("a", 3, "key_1", TODAY, 7)
    assert await store.budgets.admit("key_1", Budget(tokens_per_day=8), 0) is None
    assert await store.budgets.admit("key_1", Budget(tokens_per_day=7), 0) is not None


async def test_admit_when_many_come_at_once_then_no_more_pass_than_may(store: RedisStore) -> None:
    budgets = Budgets(store.budgets)
    who = caller(requests_per_minute=5)
    results = await asyncio.gather(*(budgets.admit(who) for _ in range(20)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, TooMany)]
    assert len(refused) == 15
    assert refused[0].retry_after is not None
    assert refused[0].metadata == {"limit": "key_requests", "budget": "5"}


async def test_spend_when_tokens_are_not_written_yet_then_they_count_on_this_server(
    store: RedisStore, connect: Connect
) -> None:
    told: list[str] = []
    budgets = Budgets(store.budgets, refused=told.append)
    who = caller(tokens_per_day=50)
    budgets.spend(who, Tokens(40, 10, cached=30))
    with pytest.raises(TooMany) as refused:
        await budgets.admit(who)
    assert refused.value.metadata["limit"] == "key_tokens"
    assert told == ["tokens"]
    async with connect() as other:
        elsewhere = Budgets(other.budgets)
        await elsewhere.admit(who)
        await budgets.write()
        with pytest.raises(TooMany):
            await elsewhere.admit(who)
    await budgets.admit(caller("key_2", tokens_per_day=50))


async def test_budgets_when_they_run_then_tokens_are_written_by_themselves_and_at_the_end(store: RedisStore) -> None:
    async def spent(least: int) -> bool:
        return await store.budgets.admit("key_1", Budget(tokens_per_day=least), 0) is not None

    async with Budgets(store.budgets, interval=0.02) as budgets:
        budgets.spend(caller(tokens_per_day=9), Tokens(5, 5))
        await until(lambda: spent(10))
        budgets.spend(caller(tokens_per_day=9), Tokens(5, 5))
    assert await spent(20)
    assert not await spent(21)


async def test_admit_when_the_store_is_away_then_nobody_is_refused(valkey: Valkey, store: RedisStore) -> None:
    budgets = Budgets(store.budgets)
    valkey.kill()
    for _ in range(3):
        await budgets.admit(caller(requests_per_minute=1))


async def test_admit_when_a_key_has_no_budget_then_the_store_is_not_asked(valkey: Valkey, store: RedisStore) -> None:
    budgets = Budgets(store.budgets)
    for _ in range(3):
        await budgets.admit(caller())
        budgets.spend(caller(), Tokens(5, 5))
    await budgets.write()
    assert b"budget" not in valkey.raw()


async def test_write_when_one_key_cannot_be_written_then_the_others_are(store: RedisStore) -> None:
    async with Budgets(store.budgets, interval=60) as budgets:
        for key in ("key_\ud800", "key_1"):
            budgets.spend(caller(key, tokens_per_day=9), Tokens(5, 5))
        await budgets.write()
    assert await store.budgets.admit("key_1", Budget(tokens_per_day=10), 0) is not None
