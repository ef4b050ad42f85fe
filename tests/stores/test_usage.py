"""What chats cost: kept in real stores, counted by the meter, and shown to whom it concerns."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import date, timedelta
from typing import Any

import pytest
from redis import Redis

from memoryos_server.domain.admin.metering import Meter
from memoryos_server.domain.admin.usage import UsageService
from memoryos_server.domain.core import paging
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import BackendDown, Fault, Forbidden, Invalid
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.core.tokens import Tokens
from memoryos_server.domain.ports.usage import Spent, Usage
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_usage import RedisUsage
from tests.stores.redis_fixtures import EXPECTED, Connect, Valkey, losing_answers, until

TODAY = utc_now().date()
YESTERDAY = TODAY - timedelta(days=1)


def row(key: str = "key_1", model: str = "m", *, day: date = TODAY, tenant: str = "acme", **spent: int) -> Usage:
    return Usage(day, tenant, key, model, Spent(**({"requests": 1} | spent)))


def by_place(found: list[Usage]) -> list[Usage]:
    return sorted(found, key=lambda one: (one.day, one.tenant_id, one.key_id, one.model))


async def test_usage_when_added_by_two_replicas_then_it_is_one_sum_per_key_model_and_day(
    store: RedisStore, connect: Connect
) -> None:
    large = 3 * 2**40
    await store.usage.add("a", 1, [row(input=large), row(model="a model", output=7), row(day=YESTERDAY)])
    async with connect() as other:
        await other.usage.add("b", 1, [row(input=large, cached=5), row("key_2"), row(tenant="globex")])
    found = by_place(await store.usage.read("acme", [TODAY, YESTERDAY]))
    assert found == by_place(
        [
            row(requests=2, input=2 * large, cached=5),
            row(model="a model", output=7),
            row("key_2"),
            row(day=YESTERDAY),
        ]
    )
    assert await store.usage.read("globex", [TODAY]) == [row(tenant="globex")]
    assert await store.usage.read("nobody", [TODAY]) == []
    assert await store.usage.tenants(TODAY) == ["acme", "globex"]
    assert await store.usage.tenants(YESTERDAY) == ["acme"]


async def test_usage_when_a_batch_is_written_again_then_it_counts_once(store: RedisStore) -> None:
    many = [row(f"key_{number}") for number in range(450)]
    for number, writer in ((1, "a"), (1, "a"), (1, "b"), (2, "a"), (2, "a")):
        await store.usage.add(writer, number, many)
    found = await store.usage.read("acme", [TODAY])
    assert len(found) == 450
    assert {one.spent.requests for one in found} == {3}


async def test_usage_when_the_answer_of_the_store_is_lost_then_it_counts_once(
    valkey: Valkey, store: RedisStore, master_keys: MasterKeys
) -> None:
    async with (
        losing_answers(valkey) as (url, lose),
        RedisStore.connect(url, master_keys, EXPECTED) as lossy,
    ):
        meter = Meter(lossy.usage)
        for _ in range(5):
            meter.count("acme", "key_1", "m", Tokens(10, 1))
            lose(1)
            with suppress(BackendDown):
                await meter.write()
        lose(0)
        await meter.write()
    assert await store.usage.read("acme", [TODAY]) == [row(requests=5, input=50, output=5)]


async def test_usage_when_there_are_too_many_models_then_they_are_other(store: RedisStore) -> None:
    small = RedisUsage(store.client, store.manifest, days=90, most=3)
    for number in range(6):
        await small.add("a", number + 1, [row(model=f"m{number}", input=1)])
    found = {one.model: one.spent.requests for one in await small.read("acme", [TODAY])}
    assert found == {"m0": 1, "m1": 1, "other": 4}


async def test_usage_when_its_days_are_over_then_the_store_drops_it(store: RedisStore, admins: list[Redis]) -> None:
    brief = RedisUsage(store.client, store.manifest, days=2)
    await brief.add("a", 1, [row()])
    left = [admin.ttl(key) for admin in admins for key in admin.keys("*:usage*")]
    assert len(left) == 2
    assert all(2 * 86_400 < seconds <= 3 * 86_400 for seconds in left)
    await brief.add("a", 2, [row(day=TODAY - timedelta(days=3))])
    assert await brief.read("acme", [TODAY - timedelta(days=3)]) == []


async def test_meter_when_it_runs_then_it_writes_by_itself_and_at_its_end(store: RedisStore) -> None:
    async with Meter(store.usage, interval=0.02) as meter:
        meter.count("acme", "key_1", "m", Tokens(10, 2, 4, 1, 3))
        await until(lambda: store.usage.read("acme", [TODAY]))
        meter.count("acme", "key_1", "m", Tokens(20, 2, injected=3, estimated=True))
    (one,) = await store.usage.read("acme", [TODAY])
    assert one.spent == Spent(2, 10, 2, 4, 1, 6, 1, 20, 2)


async def test_meter_when_the_store_is_away_then_counts_wait_in_a_bounded_room(
    valkey: Valkey, store: RedisStore
) -> None:
    meter = Meter(store.usage, most=2)
    valkey.kill()
    for key in ("key_1", "key_2", "key_3", "key_1"):
        meter.count("acme", key, "m", Tokens(1, 1))
    with pytest.raises(Fault):
        await meter.write()
    valkey.start()

    async def written() -> bool:
        with suppress(BackendDown):
            await meter.write()
            return True
        return False

    await until(written)
    found = by_place(await store.usage.read("acme", [TODAY]))
    assert [(one.key_id, one.spent.requests) for one in found] == [("key_1", 2), ("key_2", 1)]


async def test_meter_when_a_batch_cannot_be_written_then_it_is_lost_and_the_next_is_written(store: RedisStore) -> None:
    async with Meter(store.usage, interval=60) as meter:
        meter.count("acme", "key_\ud800", "m", Tokens(1, 1))
        await meter.write()
        meter.count("acme", "key_1", "m", Tokens(1, 1))
        await meter.write()
    assert await store.usage.read("acme", [TODAY]) == [row(input=1, output=1)]


ADMIN = Caller("acme", "boss", frozenset({"admin"}), "key_admin")
ROOT = Caller("default", None, frozenset({"admin"}), "admin_key", any_tenant=True)
USER = Caller("acme", "ann", frozenset({"chat"}), "key_1")


async def _opened(store: RedisStore) -> UsageService:
    rows = [row(), row("key_2"), row(day=YESTERDAY), row("key_9", tenant="globex"), row(day=TODAY - timedelta(days=40))]
    await store.usage.add("a", 1, rows)
    return UsageService(store.usage, Meter(store.usage))


async def test_list_usage_when_asked_then_each_sees_what_concerns_them(store: RedisStore) -> None:
    service = await _opened(store)
    seen: dict[str, Any] = {}
    for name, who, asked in (
        ("user", USER, {}),
        ("admin", ADMIN, {}),
        ("admin's key", ADMIN, {"key_id": "key_2"}),
        ("root", ROOT, {"tenant_id": "globex"}),
        ("all", ROOT, {"tenant_id": "*"}),
        ("none", ROOT, {}),
        ("span", ADMIN, {"first": YESTERDAY.isoformat(), "last": YESTERDAY.isoformat()}),
        ("long", ADMIN, {"first": (TODAY - timedelta(days=50)).isoformat()}),
    ):
        found, token = await service.usage(who, **asked)
        assert token == ""
        seen[name] = found
    assert seen["user"] == [row(), row(day=YESTERDAY)]
    assert seen["admin"] == [row(), row("key_2"), row(day=YESTERDAY)]
    assert seen["admin's key"] == [row("key_2")]
    assert seen["root"] == [row("key_9", tenant="globex")]
    assert seen["all"] == [row(), row("key_2"), row("key_9", tenant="globex"), row(day=YESTERDAY)]
    assert seen["none"] == []
    assert seen["span"] == [row(day=YESTERDAY)]
    assert len(seen["long"]) == 4


@pytest.mark.parametrize(
    ("who", "asked"),
    [
        (USER, {"key_id": "key_2"}),
        (USER, {"tenant_id": "globex"}),
        (USER, {"tenant_id": "*"}),
        (ADMIN, {"tenant_id": "globex"}),
        (ADMIN, {"tenant_id": "*"}),
        (Caller("acme", "ann", frozenset({"chat"}), "key_1", any_tenant=True), {"tenant_id": "globex"}),
    ],
)
async def test_list_usage_when_it_does_not_concern_the_caller_then_forbidden(
    store: RedisStore, who: Caller, asked: dict[str, str]
) -> None:
    with pytest.raises(Forbidden):
        await (await _opened(store)).usage(who, **asked)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"first": "2026-1-1"}, "from"),
        ({"last": "20260101"}, "to"),
        ({"first": "9999-12-31"}, "from"),
        ({"first": "2020-01-01"}, "from"),
        ({"last": "0001-01-01"}, "to"),
        ({"tenant_id": "a b"}, "tenant_id"),
        ({"page_size": 0}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"page_token": "W10"}, "page_token"),
    ],
)
async def test_list_usage_when_something_is_malformed_then_it_is_named(
    asked: dict[str, Any], param: str, valkey: Valkey
) -> None:
    async with RedisStore.connect(valkey.url, MasterKeys("", valkey.directory / "keys"), EXPECTED) as store:
        with pytest.raises(Invalid) as refused:
            await UsageService(store.usage, Meter(store.usage)).usage(ROOT, **asked)
    assert refused.value.param == param


async def test_list_usage_when_there_is_much_then_pages_hold_each_once(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE", 7)
    rows = [
        row(f"key_{key}", day=TODAY - timedelta(days=back), tenant=tenant)
        for back in (0, 1, 8, 9, 20)
        for tenant in ("acme", "globex")
        for key in range(4)
    ]
    await store.usage.add("a", 1, rows)
    service = UsageService(store.usage, Meter(store.usage))
    found, token = await service.usage(ROOT, tenant_id="*", page_size=1000)
    while token:
        more, token = await service.usage(ROOT, tenant_id="*", page_token=token)
        found += more
    assert found == sorted(rows, key=lambda one: (-one.day.toordinal(), one.tenant_id, one.key_id))


async def test_list_usage_when_something_was_just_counted_then_it_is_in_it(store: RedisStore) -> None:
    meter = Meter(store.usage)
    meter.count("acme", "key_1", "m", Tokens(3, 4))
    service = UsageService(store.usage, meter)
    first, second = await asyncio.gather(service.usage(USER), service.usage(USER))
    assert first == second == ([row(input=3, output=4)], "")
