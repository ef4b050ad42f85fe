from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from memoryos_server.domain.core.faults import Stale
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import from_unix, utc_now
from memoryos_server.domain.ports import Change, EventState, Lease, Settlement, Subject
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_turns import RedisTurns
from memoryos_server.stores.scope import Partition
from tests.stores.redis_fixtures import (
    EXPECTED,
    Connect,
    Valkey,
    erase,
    lease_of,
    losing_answers,
    open_entries,
    said,
    settle_all,
)


async def state_of(store: RedisStore, subject: Subject, event_id: str) -> EventState:
    state = await store.turns.state(subject, event_id)
    assert state is not None
    return state


async def due_at(store: RedisStore, subject: Subject) -> datetime | None:
    score = await store.client.run("ZSCORE", Partition(subject.partition).due, subject.id)
    return None if score is None else from_unix(float(score))


async def test_state_when_an_event_goes_through_the_ledger_then_tells_each_state_once_it_is_there(
    store: RedisStore,
) -> None:
    ann = await store.subjects.open("acme", "ann")
    assert await store.turns.state(ann, "e1") is None
    turn = said(ann, "e1")
    before = utc_now() - timedelta(seconds=1)
    await store.turns.accept(ann, [turn])
    accepted = await state_of(store, ann, "e1")
    assert (accepted.event_id, accepted.memory_id, accepted.state, accepted.attempts) == ("e1", turn.id, "accepted", 0)
    assert accepted.changed_at is not None
    assert before < accepted.changed_at < utc_now() + timedelta(seconds=1)
    related = uuid7()
    await settle_all(store, ann, state="merged", reason="duplicate", related=related, fresh=False)
    merged = await state_of(store, ann, "e1")
    assert (merged.memory_id, merged.state, merged.reason, merged.related) == (turn.id, "merged", "duplicate", related)
    assert merged.changed_at is not None
    assert accepted.changed_at <= merged.changed_at


@pytest.mark.parametrize(("state", "reason"), [("stored", ""), ("rejected", "consent_withdrawn")])
async def test_settle_when_done_then_the_entry_is_gone_and_the_state_is_kept(
    store: RedisStore, state: str, reason: str
) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1"), said(ann, "e2", "二")])
    await settle_all(store, ann, state=state, reason=reason)
    assert await store.queue.depth() == 0
    for event_id in ("e1", "e2"):
        found = await state_of(store, ann, event_id)
        assert (found.state, found.reason, found.related) == (state, reason, "")
    assert (await store.turns.accept(ann, [said(ann, "e1")]))[0].duplicate


async def test_settle_when_repeated_or_contradicted_then_the_first_end_stays(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1"), said(ann, "e2")])
    lease = await lease_of(store, ann)
    first, second = await open_entries(store)
    await store.queue.settle(lease, [Settlement(first)])
    was = await state_of(store, ann, "e1")
    await store.queue.settle(lease, [Settlement(first), Settlement(second), Settlement(second)])
    await store.queue.settle(lease, [Settlement(first, "rejected", "greeting"), Settlement(second, "merged")])
    await store.queue.settle(lease, [])
    assert await state_of(store, ann, "e1") == was
    assert (await state_of(store, ann, "e2")).state == "stored"
    assert await store.queue.fresh(ann) == [said(ann, "e1").id, said(ann, "e2").id]


async def test_settle_when_two_holders_compete_then_only_the_later_one_writes(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1"), said(ann, "e2")])
    async with connect() as other:
        old = await store.queue.claim(ann.partition, 0.05)
        assert old is not None
        await asyncio.sleep(0.06)
        new = await lease_of(other, ann)
        assert new.token > old.token
        entries = await open_entries(store)
        late = [Settlement(entry, "rejected", "late") for entry in entries]
        refused = [
            store.queue.settle(old, late),
            store.queue.failed(old, entries[0], "late", give_up=True),
            store.queue.failed(old, entries[0], "late", give_up=False),
            store.queue.started(old, entries),
            store.queue.consolidated(old, ann, [], None),
        ]
        for call in refused:
            with pytest.raises(Stale):
                await call
        assert [entry.attempts for entry in await open_entries(other)] == [0, 0]
        await other.queue.settle(new, [Settlement(entry) for entry in entries])
        with pytest.raises(Stale):
            await store.queue.settle(old, late)
    assert [(await state_of(store, ann, event_id)).state for event_id in ("e1", "e2")] == ["stored"] * 2
    assert len(await store.queue.fresh(ann)) == 2


async def test_settle_when_many_calls_race_then_each_entry_ends_once(store: RedisStore) -> None:
    subjects = [await store.subjects.open("acme", f"user-{number}") for number in range(4)]
    for subject in subjects:
        await store.turns.accept(subject, [said(subject, f"e{number}") for number in range(50)])

    async def work(subject: Subject) -> None:
        lease = await lease_of(store, subject)
        async for entry in store.queue.open_entries(subject.partition):
            await store.queue.settle(lease, [Settlement(entry)])

    await asyncio.gather(*(work(subject) for subject in subjects for _ in range(3)))
    assert await store.queue.depth() == 0
    for subject in subjects:
        assert await store.queue.fresh(subject) == [said(subject, f"e{number}").id for number in range(50)]


async def test_settle_when_the_store_is_killed_in_between_then_every_event_has_one_end_or_none(
    connect: Connect, valkey: Valkey
) -> None:
    async with connect() as store:
        ann = await store.subjects.open("acme", "ann")
        turns = [said(ann, f"e{number}") for number in range(100)]
        await store.turns.accept(ann, turns)
        lease = await lease_of(store, ann)
        entries = await open_entries(store)
        for at in range(0, 60, 10):
            await store.queue.settle(lease, [Settlement(entry) for entry in entries[at : at + 10]])
        await store.queue.failed(lease, entries[60], "poison", give_up=True)
        await store.queue.started(lease, entries[61:62])
        valkey.kill()
    valkey.start()
    async with connect() as store:
        left = await open_entries(store)
        assert [(entry.id, entry.attempts) for entry in left] == [
            (entry.id, int(number == 0)) for number, entry in enumerate(entries[61:])
        ]
        # Another process cannot have the partition while the dead one's lease lasts; with its token it goes on.
        assert await store.queue.claim(ann.partition, 60) is None
        await store.queue.settle(lease, [Settlement(entry) for entry in entries])
        assert await store.queue.fresh(ann) == [turn.id for turn in [*turns[:60], *turns[61:]]]
        states = [(await state_of(store, ann, turn.event_id)).state for turn in turns]
        assert states == ["stored"] * 60 + ["dead_letter"] + ["stored"] * 39
        assert await store.queue.depth() == 0


async def test_settle_when_the_answer_is_lost_then_nothing_is_written_twice(
    valkey: Valkey, master_keys: MasterKeys
) -> None:
    async with losing_answers(valkey) as (url, lose), RedisStore.connect(url, master_keys, EXPECTED) as store:
        ann = await store.subjects.open("acme", "ann")
        await store.turns.accept(ann, [said(ann, "e1"), said(ann, "e2"), said(ann, "e3")])
        lease = await lease_of(store, ann)
        first, second, third = await open_entries(store)
        for call in (
            lambda: store.queue.settle(lease, [Settlement(first)]),
            lambda: store.queue.started(lease, [second]),
            lambda: store.queue.failed(lease, second, "late", give_up=False),
            lambda: store.queue.failed(lease, third, "poison", give_up=True),
        ):
            lose(1)
            await call()
        assert await store.queue.fresh(ann) == [said(ann, "e1").id]
        assert [(entry.id, entry.attempts) for entry in await open_entries(store)] == [(second.id, 2)]
        assert [letter.attempts async for letter in store.queue.dead_letters(None)] == [1]


async def test_settle_when_the_epoch_is_over_then_the_entry_goes_and_leaves_nothing(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1")])
    entries = await open_entries(store)
    lease = await lease_of(store, ann)
    async with connect() as other:
        await erase(other, ann)
        new = await other.subjects.open("acme", "ann")
        await store.queue.settle(lease, [Settlement(entry) for entry in entries])
        assert await other.queue.depth() == 0
        assert await other.queue.fresh(new) == []
        await store.queue.consolidated(lease, ann, [], from_unix(4_000_000_000))
    assert await due_at(store, new) is None


async def test_settle_when_an_entry_lies_in_another_partition_then_is_refused(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1")])
    elsewhere = Lease((ann.partition + 1) % 256, 1)
    with pytest.raises(ValueError, match="another partition"):
        await store.queue.settle(elsewhere, [Settlement(entry) for entry in await open_entries(store)])


async def test_settle_when_a_mark_is_of_yesterday_then_the_state_is_found_all_the_same(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    for name, off in (("yesterday", -86_400), ("tomorrow", 86_400)):
        turns = RedisTurns(store.client, store.subjects, store.audit, now=lambda off=off: utc_now().timestamp() + off)  # type: ignore[misc]  # a late default
        await turns.accept(ann, [said(ann, name)])
    await settle_all(store, ann)
    for name in ("yesterday", "tomorrow"):
        assert (await state_of(store, ann, name)).state == "stored"


async def test_due_when_fresh_turns_are_few_then_idle_seconds_after_the_last_and_when_full_at_once(
    connect: Connect,
) -> None:
    async with connect(short_term_turns=5, short_term_ttl_seconds=3600, session_idle_seconds=1800) as store:
        ann = await store.subjects.open("acme", "ann")
        now = utc_now()
        await store.turns.accept(ann, [said(ann, f"e{number}") for number in range(4)])
        await settle_all(store, ann)
        due = await due_at(store, ann)
        assert due is not None
        assert timedelta(seconds=1795) < due - now < timedelta(seconds=1860)
        assert await store.queue.due(ann.partition, now + timedelta(seconds=1700)) == []
        assert await store.queue.due(ann.partition, now + timedelta(seconds=1900)) == [ann]
        assert await store.queue.due_partitions(now + timedelta(seconds=1900)) == [ann.partition]
        await store.turns.accept(ann, [said(ann, "e4")])
        await settle_all(store, ann)
        assert await store.queue.due(ann.partition, utc_now() + timedelta(seconds=5)) == [ann]
        # What is due says who it is also where nobody has heard of him yet.
        async with connect() as other:
            assert await other.queue.due(ann.partition, utc_now() + timedelta(seconds=5)) == [ann]


async def test_due_when_the_short_term_memory_ends_first_then_before_it_does(connect: Connect) -> None:
    async with connect(short_term_ttl_seconds=600, session_idle_seconds=1800) as store:
        ann = await store.subjects.open("acme", "ann")
        now = utc_now()
        await store.turns.accept(ann, [said(ann, "e1")])
        await settle_all(store, ann)
        due = await due_at(store, ann)
        assert due is not None
        assert timedelta(seconds=535) < due - now < timedelta(seconds=570)


async def test_due_when_only_junk_was_said_then_nobody_is_due(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1", "hello")])
    await settle_all(store, ann, state="rejected", reason="greeting", fresh=False)
    assert await store.queue.fresh(ann) == []
    assert await store.queue.due_partitions(utc_now() + timedelta(days=9)) == []


async def test_due_when_the_person_is_erased_then_is_forgotten(store: RedisStore, connect: Connect) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1")])
    await settle_all(store, ann)
    await erase(store, ann)
    later = utc_now() + timedelta(days=1)
    async with connect() as other:
        assert await other.queue.due(ann.partition, later) == []
    assert await store.queue.due_partitions(later) == []


async def test_consolidated_when_done_then_exactly_those_turns_leave_and_the_rest_is_due_when_said(
    store: RedisStore,
) -> None:
    ann = await store.subjects.open("acme", "ann")
    turns = [said(ann, f"e{number}") for number in range(6)]
    await store.turns.accept(ann, turns)
    await settle_all(store, ann)
    lease = await lease_of(store, ann)
    then = from_unix(4_000_000_000)
    for _ in range(2):
        await store.queue.consolidated(lease, ann, [turns[0].id, turns[3].id, uuid7()], then)
        assert await store.queue.fresh(ann) == [turns[at].id for at in (1, 2, 4, 5)]
        assert await due_at(store, ann) == then
    # Without a time for the rest, the time that is set stays.
    await store.queue.consolidated(lease, ann, [turns[1].id], None)
    assert await due_at(store, ann) == then
    await store.queue.consolidated(lease, ann, [turn.id for turn in turns], None)
    assert await store.queue.fresh(ann) == []
    assert await due_at(store, ann) is None


async def test_consolidated_when_thousands_are_fresh_then_the_order_stays(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    turns = [said(ann, f"e{number}") for number in range(2500)]
    await store.turns.accept(ann, turns)
    await settle_all(store, ann)
    await store.queue.consolidated(await lease_of(store, ann), ann, [turn.id for turn in turns[1:300]], None)
    assert await store.queue.fresh(ann) == [turn.id for turn in [turns[0], *turns[300:]]]


async def test_failed_when_it_goes_on_then_attempts_are_counted_and_seen(store: RedisStore, connect: Connect) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1"), said(ann, "e2")])
    lease = await lease_of(store, ann)
    entry, other_entry = await open_entries(store)
    assert [await store.queue.failed(lease, entry, "timeout", give_up=False) for _ in range(3)] == [1, 2, 3]
    await store.queue.started(lease, [entry, other_entry])
    await store.queue.started(lease, [])
    async with connect() as restarted:
        assert [one.attempts for one in await open_entries(restarted)] == [4, 1]
    assert ((await state_of(store, ann, "e1")).state, (await state_of(store, ann, "e1")).attempts) == ("accepted", 4)
    await store.queue.settle(lease, [Settlement(entry), Settlement(other_entry)])
    assert (await state_of(store, ann, "e1")).attempts == 4
    assert await store.client.run("EXISTS", Partition(ann.partition).attempts) == 0


async def test_settle_when_it_is_a_change_then_it_is_gone_and_nothing_else_happens(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.queue.submit(ann, Change(), None, revision=None)
    await settle_all(store, ann)
    partition = Partition(ann.partition)
    assert await store.client.run("EXISTS", partition.changes, partition.due, partition.attempts) == 0
    assert await store.queue.depth() == 0
    assert await store.queue.revision(ann) == 1


async def test_due_when_a_person_s_key_is_damaged_then_the_others_come_and_it_is_tried_later(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1")])
    await settle_all(store, ann)
    partition, later = Partition(ann.partition), utc_now() + timedelta(days=1)
    await store.client.run("HSET", partition.keyring, ann.id, b"damaged")
    async with connect() as other:
        assert await other.queue.due(ann.partition, later) == []
        assert await other.queue.due_partitions(later) == []
        assert await other.queue.due_partitions(later + timedelta(hours=2)) == [ann.partition]


async def test_settle_when_what_is_cached_of_the_person_is_older_than_the_entry_then_its_state_is_kept(
    store: RedisStore, connect: Connect
) -> None:
    old = await store.subjects.open("acme", "ann")
    async with connect() as other:
        await erase(other, old)
        new = await other.subjects.open("acme", "ann")
        await other.turns.accept(new, [said(new, "e1")])
        entries = await open_entries(other)
        await store.queue.settle(await lease_of(store, new), [Settlement(entry) for entry in entries])
        assert (await state_of(other, new, "e1")).state == "stored"
