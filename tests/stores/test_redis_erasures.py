"""The write that ends somebody's epoch, the records of erasures, and what of the Redis side each category has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from redis import Redis

from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import KINDS, Change, HeatState, Record, Subject
from memoryos_server.domain.ports.consents import Consent
from memoryos_server.domain.ports.privacy import ERASED, Erasure, Part, Whose
from memoryos_server.domain.ports.receipts import Receipt
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.redis_erasures import RedisErasures
from memoryos_server.stores.redis_subjects import SCRIPTS
from memoryos_server.stores.redis_user_data import Consents, Heat, OwnKeys, Receipts, Recent, Sessions, Work
from memoryos_server.stores.scope import SubjectKeys
from tests.stores.redis_fixtures import EXPECTED, Connect, Valkey, lease_of, losing_answers, said, settle_all, until


def categories(store: RedisStore) -> list[OwnKeys]:
    return [
        Recent(store.client, store.turns),
        Sessions(store.client, store.turns),
        Work(store.client, store.queue),
        Receipts(store.client, store.receipts),
        Heat(store.client, store.heat),
        Consents(store.client, store.consents),
    ]


async def begin(store: RedisStore, user: str, tenant: str = "acme") -> Erasure:
    return await store.erasures.begin(tenant, user, "key_1", utc_now())


async def used(store: RedisStore, user: str) -> Subject:
    """A subject with something under every key that there is: fresh turns, open entries, a dead letter, a change."""
    subject = await store.subjects.open("acme", user)
    await store.turns.accept(subject, [said(subject, "e1"), said(subject, "e2")])
    await settle_all(store, subject)
    await store.turns.accept(subject, [said(subject, "e3"), said(subject, "e4")])
    lease = await lease_of(store, subject)
    first, *_ = [one async for one in store.queue.open_entries(subject.partition) if one.subject == subject]
    await store.queue.started(lease, [first])
    await store.queue.failed(lease, first, "poison", give_up=True)
    now = utc_now()
    record = Record(said(subject, "r").id, "memory", 1, "kind", "rule", now, now, now)
    await store.queue.submit(subject, Change(put=(record,)), None, revision=0)
    await store.receipts.keep(subject, [Receipt(uuid7(), "m", "upstream", "p", "", 1, 1, False, ())])
    await store.heat.put(subject, {record.id: HeatState(1, 1, now)})
    await store.consents.record(subject, Consent(uuid7(), "analytics", True, now, "key_1"), None)
    await store.queue.release(lease)
    return subject


async def test_begin_when_done_then_the_old_epoch_takes_nothing_and_who_comes_back_is_somebody_new(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    async with connect() as other:
        assert await other.subjects.find("acme", "ann") == ann
        erasure = await begin(store, "ann")
        assert (erasure.whose.subject_id, erasure.whose.tenant_id) == (ann.id, "acme")

        async def forgotten() -> bool:
            return await other.subjects.find("acme", "ann") is None

        await until(forgotten)
        for replica in (store, other):
            with pytest.raises(Stale):
                await replica.subjects.sealer(ann)
            assert await replica.subjects.by_id(ann.id) is None
        new, again = await asyncio.gather(store.subjects.open("acme", "ann"), other.subjects.open("acme", "ann"))
        assert new == again
        assert new.id != ann.id
        # A writer that had the old subject before writes nothing.
        with pytest.raises(Stale):
            await other.turns.accept(ann, [said(ann, "late")])


async def test_begin_when_nobody_is_known_then_there_is_a_record_all_the_same(store: RedisStore) -> None:
    erasure = await begin(store, "nobody")
    assert erasure.whose.subject_id == ""
    assert await store.erasures.find(erasure.id) == erasure
    assert await store.erasures.pending() == [erasure]
    assert await store.subjects.find("acme", "nobody") is None


async def test_begin_when_its_id_was_known_before_then_it_has_that_and_is_done_once(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    known = store.erasures.fresh_id("acme", "ann")
    assert await store.erasures.find(known) is None
    first = await store.erasures.begin("acme", "ann", "key_1", utc_now(), erasure_id=known)
    assert (first.id, first.whose.subject_id, first.told) == (known, ann.id, False)
    back = await store.subjects.open("acme", "ann")
    await store.erasures.begin("acme", "ann", "key_1", utc_now(), erasure_id=known)
    assert await store.erasures.pending() == [first]
    assert await store.subjects.find("acme", "ann") == back, "who came back is not erased by what was asked before"


async def test_begin_when_many_begin_at_once_then_one_ends_the_epoch_and_each_has_a_record(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    async with connect() as other:
        made = await asyncio.gather(*(begin(one, "ann") for one in (store, other) * 5))
    assert sorted(one.whose.subject_id for one in made) == [""] * 9 + [ann.id]
    assert len({one.id for one in await store.erasures.pending()}) == 10


async def test_begin_when_its_answer_is_lost_then_it_is_done_once(valkey: Valkey, master_keys: MasterKeys) -> None:
    async with RedisStore.connect(valkey.url, master_keys, EXPECTED) as store, losing_answers(valkey) as (url, lose):
        ann = await store.subjects.open("acme", "ann")
        client = Client(url)
        lose(1)
        erasure = await RedisErasures(client, store.manifest, store.subjects).begin("acme", "ann", "k", utc_now())
        await client.aclose()
        assert erasure.whose.subject_id == ann.id
        assert await store.erasures.pending() == [erasure]
        assert await store.client.run("HGETALL", SubjectKeys(ann.id).record) == {b"epoch": b"2", b"erased": b"1"}


async def test_open_when_it_is_sent_again_after_the_erasure_then_the_old_key_does_not_come_back(
    store: RedisStore,
) -> None:
    ann = await store.subjects.open("acme", "ann")
    keys = SubjectKeys(ann.id)
    wrapped = await store.client.run("HGET", keys.partition.keyring, ann.id)
    lookup = store.subjects.lookup("acme", "ann")
    await begin(store, "ann")
    scripts = {script.name: script for script in SCRIPTS}
    answer = await store.client.script(
        scripts["open_subject"],
        [keys.partition.lookup, keys.record, keys.partition.keyring],
        [lookup, ann.id, wrapped, b"w"],
    )
    assert answer == [b""]
    assert await store.client.run("HGET", keys.partition.keyring, ann.id) is None


async def test_keep_when_somebody_else_kept_it_meanwhile_then_nothing_is_kept(store: RedisStore) -> None:
    first = await begin(store, "ann")
    done = replace(
        first,
        state=ERASED,
        parts={"episodes": Part(3, 0), "queue": Part(1, None, "away")},
        attempts=1,
        verified_at=utc_now(),
        settled=True,
        files={"redis": "not_ours"},
        compacted_at=utc_now(),
        told=True,
    )
    kept = await store.erasures.keep(done)
    assert kept == replace(done, revision=1)
    assert await store.erasures.find(first.id) == kept
    assert await store.erasures.keep(replace(first, attempts=9)) is None
    assert kept is not None
    assert kept.errors == ["queue: away"]
    assert await store.erasures.pending() == [kept]
    last = await store.erasures.keep(kept, ended=True)
    assert await store.erasures.pending() == []
    assert await store.erasures.find(first.id) == last
    assert await store.erasures.find("nothing") is None


async def test_categories_when_everything_was_used_then_together_they_erase_every_key_of_the_subject_and_no_other_s(
    store: RedisStore, admins: list[Redis]
) -> None:
    ann, bob = await used(store, "ann"), await used(store, "bob")
    both = categories(store)
    today = int(utc_now().timestamp() // 86_400)
    covered = {key for one in both for key in one.keys(SubjectKeys(ann.id))}
    # Whoever adds a key must say which category has it.
    assert covered >= set(SubjectKeys(ann.id).keys(today))
    erasure = await begin(store, "ann")
    theirs = Whose("acme", store.erasures.lookup("acme", "bob"), bob.id, utc_now())
    before = [await one.left(theirs) for one in both]
    assert all([await one.left(erasure.whose) for one in both])
    assert all([await one.erase(erasure.whose) for one in both])
    assert [await one.left(erasure.whose) for one in both] == [0] * len(both)
    assert [await one.erase(erasure.whose) for one in both] == [0] * len(both)
    assert [await one.left(theirs) for one in both] == before
    # By any name and in any value: what is left of her is the tombstone, the certificate, and the audit's sealed events.
    seen = {key for admin in admins for key in admin.scan_iter(count=1000) if ann.id.encode() in key}
    assert seen == {SubjectKeys(ann.id).record.encode()}
    partition = SubjectKeys(ann.id).partition
    for stream in (partition.queue, partition.dead):
        entries = await store.client.run("XRANGE", stream, "-", "+")
        assert [one for one in entries if one[1].get(b"s") == ann.id.encode()] == []
    assert len([one async for one in store.queue.dead_letters("acme") if one.subject == bob]) == 1


async def test_export_when_everything_was_used_then_each_category_gives_it(store: RedisStore) -> None:
    ann = await used(store, "ann")
    await used(store, "bob")
    whose = Whose("acme", store.erasures.lookup("acme", "ann"), ann.id, utc_now())
    found = {one.name: [item async for item in one.export(whose, ann)] for one in categories(store)}  # type: ignore[attr-defined]
    assert [item["event_id"] for item in found["recent"]] == ["e1", "e2", "e3", "e4"]
    assert [(item["id"], item["turns"]) for item in found["sessions"]] == [("s-1", 4)]
    work = found["queue"]
    assert [(item["state"], (item.get("turn") or {}).get("event_id")) for item in work] == [
        ("open", "e4"),
        ("open", None),
        ("dead_letter", None),
    ]
    assert work[1]["records"][0]["content"] == "kind"
    assert work[2]["content"] == "I live in Oslo"
    assert len(found["receipts"]) == len(found["heat"]) == 1


def test_kinds_when_counted_then_wiring_has_a_category_for_each() -> None:
    # Whoever adds a kind of records must say which category has it.
    import inspect

    from memoryos_server import wiring

    text = inspect.getsource(wiring.open_privacy)
    assert [kind for kind in KINDS if f'"{kind}")' not in text] == []


async def test_users_when_somebody_is_erased_then_is_in_no_list(store: RedisStore) -> None:
    await store.subjects.open("acme", "ann")
    await store.subjects.open("acme", "bob")
    await begin(store, "ann")
    found, _ = await store.subjects.users("acme", "", 10)
    assert [one.user_id for one in found] == ["bob"]


def test_errors_when_something_is_left_then_are_told_by_category() -> None:
    now = utc_now()
    one = Erasure("0" * 32, Whose("t", "l", "", now - timedelta(1)), "k", now, parts={"b": Part(1, 2), "a": Part(0, 0)})
    assert one.errors == ["b: 2 left"]


async def test_pending_when_one_user_s_are_asked_for_then_no_other_s_are_given(store: RedisStore) -> None:
    made = [await begin(store, "ann"), await begin(store, "ann"), await begin(store, "bob")]
    found = await store.erasures.pending(store.erasures.lookup("acme", "ann"))
    assert sorted(one.id for one in found) == sorted(one.id for one in made[:2])
    assert await store.erasures.pending(store.erasures.lookup("other", "ann")) == []
