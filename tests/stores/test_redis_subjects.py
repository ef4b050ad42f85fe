from __future__ import annotations

import asyncio
import base64
from dataclasses import replace

import pytest

from memoryos_server.domain.core.faults import BackendDown, Invalid, Stale
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import Partition, partition_of
from memoryos_server.stores.sealing import SealBroken
from tests.stores.redis_fixtures import Connect, Valkey, erase


async def test_find_when_never_heard_of_then_none_and_nothing_is_made(store: RedisStore) -> None:
    before = await store.client.run("DBSIZE")
    assert await store.subjects.find("acme", "ann") is None
    assert await store.subjects.by_id("ab" * 16) is None
    assert await store.subjects.by_id("{p000}:x") is None
    assert await store.client.run("DBSIZE") == before


async def test_open_when_done_then_any_replica_finds_it_by_name_and_id(store: RedisStore, connect: Connect) -> None:
    made = await store.subjects.open("acme", "安 ann")
    async with connect() as other:
        assert await other.subjects.find("acme", "安 ann") == made
        assert await other.subjects.by_id(made.id) == made
        sealed = (await store.subjects.sealer(made)).seal("r", b"text")
        assert (await other.subjects.sealer(made)).open("r", sealed) == b"text"
    assert made.epoch == 1
    assert made.partition == partition_of(store.subjects.lookup("acme", "安 ann")).number


async def test_open_when_many_call_on_two_replicas_at_once_then_one_subject(
    store: RedisStore, connect: Connect
) -> None:
    async with connect() as other:
        opened = await asyncio.gather(
            *(subjects.open("acme", "ann") for _ in range(16) for subjects in (store.subjects, other.subjects))
        )
        assert len({subject.id for subject in opened}) == 1
        keyring = Partition(opened[0].partition).keyring
        assert await store.client.run("HLEN", keyring) == 1
        sealed = (await store.subjects.sealer(opened[0])).seal("r", b"text")
        assert (await other.subjects.sealer(opened[0])).open("r", sealed) == b"text"


async def test_open_when_tenant_or_user_differs_then_another_subject(store: RedisStore) -> None:
    pairs = [("acme", "ann"), ("acme", "anna"), ("acmea", "nn"), ("other", "ann"), ("acme", "Ann")]
    assert len({(await store.subjects.open(*pair)).id for pair in pairs}) == len(pairs)


async def test_open_tenant_when_done_then_is_nobody_s_subject(store: RedisStore) -> None:
    shared = await store.subjects.open_tenant("acme")
    assert shared == await store.subjects.open_tenant("acme")
    assert shared.id != (await store.subjects.open("acme", "tenant")).id


async def test_open_when_erased_then_a_new_key_and_the_old_epoch_is_stale(store: RedisStore) -> None:
    old = await store.subjects.open("acme", "ann")
    sealed = (await store.subjects.sealer(old)).seal("r", b"text")
    await erase(store, old)
    store.subjects.forget(old.id)
    assert await store.subjects.find("acme", "ann") is None
    assert await store.subjects.by_id(old.id) is None
    new = await store.subjects.open("acme", "ann")
    assert new == replace(old, epoch=2)
    with pytest.raises(Stale):
        await store.subjects.sealer(old)
    with pytest.raises(SealBroken):
        (await store.subjects.sealer(new)).open("r", sealed)


async def test_find_when_the_store_is_down_then_the_cached_are_known_and_others_are_not(
    store: RedisStore, valkey: Valkey
) -> None:
    ann = await store.subjects.open("acme", "ann")
    valkey.kill()
    store.subjects.distrust()
    assert await store.subjects.find("acme", "ann") == ann
    assert await store.subjects.sealer(ann)
    with pytest.raises(BackendDown):
        await store.subjects.find("acme", "bob")
    with pytest.raises(BackendDown):
        await store.subjects.open("acme", "bob")
    with pytest.raises(BackendDown):
        await store.ping()
    valkey.start()
    await store.ping()
    assert (await store.subjects.open("acme", "bob")).user_id == "bob"


async def test_cache_when_full_then_forgets_the_one_used_longest_ago(store: RedisStore, valkey: Valkey) -> None:
    subjects = RedisSubjects(store.client, store.manifest, capacity=2)
    ann = await subjects.open("acme", "ann")
    await subjects.open("acme", "bob")
    assert await subjects.find("acme", "ann") == ann
    await subjects.open("acme", "cat")
    valkey.kill()
    assert await subjects.find("acme", "ann") == ann
    with pytest.raises(BackendDown):
        await subjects.find("acme", "bob")


async def test_find_when_the_cache_is_stale_then_asks_again(store: RedisStore, connect: Connect) -> None:
    async with connect() as other:
        ann = await store.subjects.open("acme", "ann")
        hurried = RedisSubjects(other.client, other.manifest, fresh_seconds=0)
        assert await hurried.find("acme", "ann") == ann
        await erase(store, ann)
        assert await hurried.find("acme", "ann") is None


async def test_users_when_listed_page_by_page_then_each_of_the_tenant_once_and_none_who_is_erased(
    store: RedisStore,
) -> None:
    await store.subjects.open_tenant("acme")
    for start in range(0, 2400, 200):
        await asyncio.gather(
            *(store.subjects.open("acme" if n % 40 == 0 else "globex", f"user {n}") for n in range(start, start + 200))
        )
    gone = await store.subjects.find("acme", "user 40")
    assert gone is not None
    await erase(store, gone)
    found: list[str] = []
    pages, after = 0, ""
    while after or not pages:
        page, after = await store.subjects.users("acme", after, 25)
        assert len(page) <= 25
        assert [one.id for one in page] == sorted(one.id for one in page)
        found += [one.user_id for one in page]
        pages += 1
    assert sorted(found) == sorted(f"user {n}" for n in range(0, 2400, 40) if n != 40)
    assert pages <= 5
    # Where a call stopped is some person of any tenant: who goes on there is not told whose.
    page, after = await store.subjects.users("nobody", "", 100)
    assert page == []
    raw = base64.urlsafe_b64decode(after + "=" * (-len(after) % 4))
    everybody: list[str] = []
    for named in ("acme", "globex"):
        for number in range(0, 2400, 7):
            one = await store.subjects.find(named, f"user {number}")
            everybody += [one.id] if one else []
    assert len(everybody) > 300
    assert not [one for one in everybody if one in after or one.encode() in raw or bytes.fromhex(one) in raw]
    # And only who was given it goes on with it.
    forged = after[:-2] + ("AA" if after[-2:] != "AA" else "BB")
    for tenant, bad in (("acme", after), ("nobody", forged), ("nobody", everybody[0]), ("nobody", "é")):
        with pytest.raises(Invalid) as refused:
            await store.subjects.users(tenant, bad, 25)
        assert refused.value.param == "page_token"
