from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from memoryos_server.domain.core.faults import BackendDown, Exists, Stale
from memoryos_server.domain.core.time import from_unix
from memoryos_server.domain.ports import ApiKey
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_keys import RedisApiKeys
from tests.stores.redis_fixtures import Connect, Valkey, until

KEY = "mos_0123456789abcdefghijklmnop"
RECORD = ApiKey(
    id="key_0123456789abcdef",
    user_id="ann 安",
    tenant_id="acme",
    permissions=frozenset({"memory", "act_as"}),
    description="for the robot",
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
    expires_at=datetime(2027, 1, 2, tzinfo=UTC),
)


async def test_find_when_created_then_every_replica_knows_it_and_its_use(store: RedisStore, connect: Connect) -> None:
    await store.keys.create(KEY, RECORD)
    async with connect() as other:
        found = await other.keys.find(KEY)
    assert found is not None
    assert found.last_used_at is not None
    assert datetime.now(UTC) - found.last_used_at < timedelta(seconds=10)
    assert replace(found, last_used_at=None) == RECORD
    assert await store.keys.find(KEY + "x") is None
    assert await store.keys.find(RECORD.id) is None


async def test_create_when_key_or_id_is_there_then_refused_and_unchanged(store: RedisStore) -> None:
    await store.keys.create(KEY, RECORD)
    other = replace(RECORD, user_id="eve")
    for key, record in ((KEY, replace(other, id="key_ffffffffffffffff")), ("another-key-of-eve", other), (KEY, RECORD)):
        with pytest.raises(Exists):
            await store.keys.create(key, record)
    assert [key.user_id for key in await store.keys.list()] == [RECORD.user_id]


async def test_list_when_several_then_oldest_first_with_last_use(store: RedisStore) -> None:
    for number in (2, 0, 1):
        made = RECORD.created_at + timedelta(days=number)
        await store.keys.create(f"{KEY}{number}", replace(RECORD, id=f"key_{number:016x}", created_at=made))
    await store.keys.find(f"{KEY}1")
    listed = await store.keys.list()
    assert [key.id[-1] for key in listed] == ["0", "1", "2"]
    assert [key.last_used_at is not None for key in listed] == [False, True, False]


@pytest.mark.parametrize("name", [KEY, RECORD.id], ids=["key", "id"])
async def test_revoke_when_others_have_it_cached_then_it_ends_at_once_everywhere(
    store: RedisStore, connect: Connect, name: str
) -> None:
    async with connect() as other:
        await store.keys.create(KEY, RECORD)
        assert await other.keys.find(KEY)
        assert await store.keys.find(KEY)
        revoked = await store.keys.revoke(name)
        assert revoked is not None
        assert revoked.id == RECORD.id
        assert await store.keys.find(KEY) is None
        await until(lambda: _unknown(other), 2)  # far below the minute that a cached key may live
        assert await store.keys.revoke(name) is None
        assert await store.keys.list() == []
        await store.keys.create(KEY, RECORD)
        assert await other.keys.find(KEY)


async def test_rotate_when_others_have_the_old_one_cached_then_they_learn_its_end_at_once(
    store: RedisStore, connect: Connect
) -> None:
    async with connect() as other:
        await store.keys.create(KEY, RECORD)
        assert await other.keys.find(KEY)
        ends = datetime.now(UTC) + timedelta(hours=1)
        new = replace(RECORD, id="key_ffffffffffffffff", created_at=ends)
        await store.keys.rotate(RECORD, ends, "the-new-key-of-ann", new)
        found = await other.keys.find("the-new-key-of-ann")
        assert found is not None
        assert replace(found, last_used_at=None) == new

        async def ended() -> bool:
            known = await other.keys.find(KEY)
            return known is not None and known.expires_at == ends

        await until(ended, 2)
        assert [key.id for key in await store.keys.list()] == [RECORD.id, new.id]


async def test_rotate_when_the_old_one_was_changed_meanwhile_then_nothing_is_done(store: RedisStore) -> None:
    await store.keys.create(KEY, RECORD)
    ends = datetime.now(UTC) + timedelta(hours=1)
    for number, outcome in enumerate(
        await asyncio.gather(
            *(
                store.keys.rotate(RECORD, ends, f"the-new-key-number-{n}", replace(RECORD, id=f"key_{n:016x}"))
                for n in range(8)
            ),
            return_exceptions=True,
        )
    ):
        assert outcome is None or isinstance(outcome, Stale)
        assert (await store.keys.find(f"the-new-key-number-{number}") is not None) == (outcome is None)
    assert len(await store.keys.list()) == 2
    await store.keys.revoke(RECORD.id)
    with pytest.raises(Stale):
        await store.keys.rotate(RECORD, None, "the-new-key-of-ann", replace(RECORD, id="key_ffffffffffffffff"))


async def test_revoke_when_two_remove_each_other_then_one_of_them_stays(store: RedisStore) -> None:
    others = {RECORD.id: "key_ffffffffffffffff", "key_ffffffffffffffff": RECORD.id}
    await store.keys.create(KEY, RECORD)
    await store.keys.create(KEY + "x", replace(RECORD, id=others[RECORD.id]))
    outcomes = await asyncio.gather(
        *(store.keys.revoke(one, while_there=[other]) for one, other in others.items()), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ApiKey", "Stale"]
    assert len(await store.keys.list()) == 1


async def test_look_when_asked_then_it_counts_as_no_use(store: RedisStore) -> None:
    await store.keys.create(KEY, RECORD)
    assert [await store.keys.look(name) for name in (KEY, RECORD.id)] == [RECORD, RECORD]
    assert [await store.keys.look(name) for name in (KEY + "x", "key_0000000000000000")] == [None, None]


async def test_find_when_cached_and_changes_are_heard_then_does_not_ask_the_store(store: RedisStore) -> None:
    await store.keys.create(KEY, RECORD)
    await store.keys.find(KEY)
    before = await _commands(store)
    for _ in range(20):
        assert await store.keys.find(KEY)
    assert await _commands(store) - before < 10


async def test_held_when_the_store_would_have_to_be_asked_then_none(store: RedisStore, connect: Connect) -> None:
    deaf = RedisApiKeys(store.client, store.manifest, lambda: False)
    await store.keys.create(KEY, RECORD)
    assert store.keys.held(KEY) is None
    found = await store.keys.find(KEY)
    assert await deaf.find(KEY)
    assert (store.keys.held(KEY), deaf.held(KEY), deaf.seen(KEY)) == (found, None, found)
    store.keys.distrust()
    assert (store.keys.held(KEY), store.keys.seen(KEY)) == (None, found)
    found = await store.keys.find(KEY)
    async with connect() as other:
        await other.keys.revoke(KEY)

        async def heard() -> bool:
            return store.keys.held(KEY) is None

        await until(heard, 2)


async def test_find_when_changes_are_not_heard_then_a_cached_key_is_asked_for_again(store: RedisStore) -> None:
    deaf = RedisApiKeys(store.client, store.manifest, lambda: False)
    await store.keys.create(KEY, RECORD)
    assert await deaf.find(KEY)
    await store.keys.revoke(KEY)
    assert await deaf.find(KEY) is None


async def test_find_when_the_subscription_was_lost_then_a_key_revoked_meanwhile_is_not_believed(
    store: RedisStore, connect: Connect
) -> None:
    async with connect() as other:
        await store.keys.create(KEY, RECORD)
        assert await other.keys.find(KEY)
        await store.client.run("CLIENT KILL", "TYPE", "pubsub")
        await store.keys.revoke(KEY)  # nobody hears this
        await until(lambda: _unknown(other), 3)


async def test_find_when_the_store_is_down_then_the_cached_work_and_others_are_unknown(
    store: RedisStore, valkey: Valkey
) -> None:
    await store.keys.create(KEY, RECORD)
    assert await store.keys.find(KEY)
    valkey.kill()
    store.keys.distrust()
    assert await store.keys.find(KEY)
    with pytest.raises(BackendDown):
        await store.keys.find(KEY + "x")
    with pytest.raises(BackendDown):
        await store.keys.revoke(KEY)
    valkey.start()
    await store.ping()
    await store.ping()
    assert await store.keys.find(KEY)
    assert await store.keys.find(KEY + "x") is None


async def test_find_when_used_often_then_use_is_recorded_once_a_minute(store: RedisStore) -> None:
    clock = [1_770_000_000.0]
    keys = RedisApiKeys(store.client, store.manifest, lambda: False, now=lambda: clock[0])
    await keys.create(KEY, RECORD)
    first = clock[0]
    for clock[0], seen in ((first, first), (first + 59, first), (first + 60, first + 60)):
        found = await keys.find(KEY)
        assert found is not None
        assert found.last_used_at == from_unix(seen)


async def test_find_when_a_revocation_overtakes_the_answer_then_the_key_is_not_cached(store: RedisStore) -> None:
    keys = RedisApiKeys(store.client, store.manifest, lambda: True)
    await keys.create(KEY, RECORD)
    for delay in range(30):
        asking = asyncio.create_task(keys.find(KEY))
        await asyncio.sleep(0.00005 * delay)
        await keys.revoke(KEY)
        await asking
        assert await keys.find(KEY) is None
        await keys.create(KEY, RECORD)


async def _unknown(store: RedisStore) -> bool:
    return await store.keys.find(KEY) is None


async def _commands(store: RedisStore) -> int:
    info = await store.client.run("INFO", "stats")
    return int(info["total_commands_processed"])
