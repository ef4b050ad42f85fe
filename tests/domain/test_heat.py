"""Heat: the formula, and counts that are written late and lost rarely, on the real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.memory.heat import HALF_LIFE_DAYS, HeatKeeper, decayed, initial, touched
from memoryos_server.domain.ports import HeatState, Subject
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import EXPECTED, Valkey

NOW = datetime(2026, 3, 1, tzinfo=UTC)
IDS = [derived_uuid("heat", str(n)) for n in range(4)]


def test_heat_when_a_half_life_passes_then_halved() -> None:
    assert decayed(initial(NOW), NOW + timedelta(days=HALF_LIFE_DAYS)) == pytest.approx(0.5)
    assert decayed(initial(NOW), NOW + timedelta(days=2 * HALF_LIFE_DAYS)) == pytest.approx(0.25)


def test_heat_when_the_state_is_from_the_future_then_it_has_not_cooled() -> None:
    assert decayed(initial(NOW), NOW - timedelta(days=3)) == 1.0


def test_heat_when_used_daily_then_it_settles_where_the_documentation_says() -> None:
    state, now = initial(NOW), NOW
    for _ in range(365):
        now += timedelta(days=1)
        state = touched(state, now)
    assert state.heat == pytest.approx(10.6, abs=0.05)
    assert (state.count, state.last_accessed) == (365, now)


@given(st.lists(st.floats(0, 60), max_size=20))
def test_heat_when_read_at_any_times_then_reading_does_not_change_what_a_later_use_finds(days: list[float]) -> None:
    state, moment = HeatState(3.0, 2, NOW), NOW
    for step in sorted(days):
        moment = NOW + timedelta(days=step)
        decayed(state, moment)
    through = touched(touched(state, NOW + timedelta(days=10), 0), NOW + timedelta(days=30))
    assert through.heat == pytest.approx(touched(state, NOW + timedelta(days=30)).heat)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[tuple[Valkey, RedisStore, Subject]]:
    (tmp_path / "valkey").mkdir()
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    try:
        keys = MasterKeys("", tmp_path / "keys", tmp_path / "valkey")
        async with RedisStore.connect(valkey.url, keys, EXPECTED) as store:
            yield valkey, store, await store.subjects.open("default", "ann")
    finally:
        valkey.remove()


Opened = tuple[Valkey, RedisStore, Subject]


async def test_keeper_when_left_then_what_waits_is_written(opened: Opened) -> None:
    _, store, ann = opened
    async with HeatKeeper(store.heat, interval=3600, clock=lambda: NOW) as keeper:
        for _ in range(3):
            keeper.touch(ann, IDS[:2])
        keeper.touch(ann, IDS[:1])
        assert await store.heat.get(ann, IDS) == {}
    kept = await store.heat.get(ann, IDS)
    assert {id_: (s.heat, s.count) for id_, s in kept.items()} == {IDS[0]: (5.0, 4), IDS[1]: (4.0, 3)}


async def test_keeper_when_time_passes_then_it_writes_by_itself_on_top_of_what_is_kept(opened: Opened) -> None:
    _, store, ann = opened
    await store.heat.put(ann, {IDS[0]: HeatState(8.0, 7, NOW - timedelta(days=HALF_LIFE_DAYS))})
    async with HeatKeeper(store.heat, interval=0.01, clock=lambda: NOW) as keeper:
        keeper.touch(ann, IDS[:1])
        async with asyncio.timeout(20):
            while (await store.heat.get(ann, IDS[:1]))[IDS[0]].count == 7:  # noqa: ASYNC110  # a reader sees no event
                await asyncio.sleep(0.01)
        state = (await store.heat.get(ann, IDS[:1]))[IDS[0]]
    assert (state.heat, state.count) == (5.0, 8)


async def test_keeper_when_the_store_is_down_for_a_while_then_nothing_is_lost(opened: Opened) -> None:
    valkey, store, ann = opened
    async with HeatKeeper(store.heat, interval=3600, clock=lambda: NOW) as keeper:
        keeper.touch(ann, IDS[:1])
        valkey.stop()
        with pytest.raises(BackendDown):
            await keeper.write()
        keeper.touch(ann, IDS[:1])
        valkey.start()
    assert (await store.heat.get(ann, IDS[:1]))[IDS[0]].count == 2


async def test_keeper_when_too_much_waits_then_more_is_dropped_and_later_counts_again(opened: Opened) -> None:
    _, store, ann = opened
    async with HeatKeeper(store.heat, interval=3600, capacity=2, clock=lambda: NOW) as keeper:
        keeper.touch(ann, IDS)
        await keeper.write()
        assert set(await store.heat.get(ann, IDS)) == set(IDS[:2])
        keeper.touch(ann, IDS[2:3])
        await keeper.write()
    assert IDS[2] in await store.heat.get(ann, IDS)


async def test_keeper_when_somebody_was_erased_meanwhile_then_the_heat_of_all_others_is_written(opened: Opened) -> None:
    _, store, ann = opened
    bob = await store.subjects.open("default", "bob")
    async with HeatKeeper(store.heat, interval=3600, clock=lambda: NOW) as keeper:
        keeper.touch(ann, IDS[:1])
        keeper.touch(bob, IDS[:1])
        await store.erasures.begin("default", "ann", "key_1", NOW)
        await keeper.write()
        assert (await store.heat.get(bob, IDS[:1]))[IDS[0]].count == 1
        await keeper.write()
