from __future__ import annotations

from redis import Redis

from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import from_unix
from memoryos_server.domain.ports import Change, HeatState
from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import Connect, erase

WHEN = from_unix(1_770_000_000.25)


async def test_heat_when_put_then_is_given_back_and_what_is_unknown_is_left_out(
    store: RedisStore, connect: Connect
) -> None:
    ann, bob = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "bob")
    one, two, three = uuid7(), uuid7(), uuid7()
    states = {one: HeatState(0.1, 1, WHEN), two: HeatState(1e6, 4_000_000_000, from_unix(1.5))}
    await store.heat.put(ann, states)
    await store.heat.put(ann, {})
    async with connect() as other:
        assert await other.heat.get(ann, [one, two, three]) == states
        assert await other.heat.get(bob, [one]) == {}
        assert await other.heat.get(ann, []) == {}


async def test_heat_when_put_again_then_the_later_one_stays(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    one = uuid7()
    await store.heat.put(ann, {one: HeatState(1, 1, WHEN)})
    await store.heat.put(ann, {one: HeatState(2, 2, WHEN)})
    assert await store.heat.get(ann, [one]) == {one: HeatState(2, 2, WHEN)}


async def test_heat_when_a_record_is_removed_then_its_heat_goes_with_it(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    one, two = uuid7(), uuid7()
    await store.heat.put(ann, {one: HeatState(1, 1, WHEN), two: HeatState(1, 1, WHEN)})
    await store.queue.submit(ann, Change(remove=(one,)), None, revision=None)
    assert set(await store.heat.get(ann, [one, two])) == {two}


async def test_heat_when_the_person_is_erased_then_nothing_more_is_kept(
    store: RedisStore, connect: Connect, admins: list[Redis]
) -> None:
    ann = await store.subjects.open("acme", "ann")
    async with connect() as other:
        await erase(other, ann)
        await store.heat.put(ann, {uuid7(): HeatState(1, 1, WHEN)})
    assert [key for admin in admins for key in admin.keys("*:heat:*")] == []
