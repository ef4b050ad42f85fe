from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from redis import Redis

from memoryos_server.domain.core.ids import alias, derived_uuid
from memoryos_server.domain.core.time import from_unix, utc_now
from memoryos_server.domain.ports import Change, DeadLetter, HeatState, Record, Subject
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_marks import DAY
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


async def letters(store: RedisStore, tenant_id: str | None = None) -> list[DeadLetter]:
    return [letter async for letter in store.queue.dead_letters(tenant_id)]


async def give_up(store: RedisStore, subject: Subject, *event_ids: str, failures: int = 0) -> None:
    """Accepts turns and gives them up."""
    await store.turns.accept(subject, [said(subject, event_id, f"said {event_id}") for event_id in event_ids])
    lease = await lease_of(store, subject)
    for entry in [entry async for entry in store.queue.open_entries(subject.partition)]:
        for _ in range(failures):
            await store.queue.failed(lease, entry, "timeout", give_up=False)
        assert await store.queue.failed(lease, entry, "poison", give_up=True) == failures + 1


async def state_of(store: RedisStore, subject: Subject, event_id: str) -> tuple[str, str, int]:
    state = await store.turns.state(subject, event_id)
    assert state is not None
    return state.state, state.reason, state.attempts


async def test_failed_when_given_up_then_a_dead_letter_tells_what_happened(store: RedisStore, connect: Connect) -> None:
    ann = await store.subjects.open("acme", "ann")
    before = utc_now() - timedelta(seconds=1)
    await give_up(store, ann, "e1", failures=4)
    assert await store.queue.depth() == 0
    assert await state_of(store, ann, "e1") == ("dead_letter", "poison", 5)
    async with connect() as other:
        letter = (await letters(other))[0]
    assert (letter.subject, letter.event_id, letter.kind) == (ann, "e1", "turn")
    assert (letter.reason, letter.attempts, letter.content) == ("poison", 5, "said e1")
    assert before < letter.failed_at < utc_now() + timedelta(seconds=1)
    assert "/" not in letter.id
    assert (await store.turns.accept(ann, [said(ann, "e1", "said e1")]))[0].duplicate


async def test_dead_letters_when_of_many_partitions_then_oldest_first_and_only_of_the_tenant(store: RedisStore) -> None:
    for number in range(30):
        for tenant in ("acme", "other"):
            subject = await store.subjects.open(tenant, f"user-{number}")
            await give_up(store, subject, "e1")
    crowd = await store.subjects.open("acme", "crowd")
    await give_up(store, crowd, *(f"e{number}" for number in range(50)))  # more than a page
    of_all, of_acme = await letters(store), await letters(store, "acme")
    assert (len(of_all), len(of_acme)) == (110, 80)
    times = [letter.failed_at for letter in of_all]
    assert times == sorted(times)
    assert {letter.subject.tenant_id for letter in of_acme if letter.subject} == {"acme"}
    assert [letter.event_id for letter in of_acme[30:]] == [f"e{number}" for number in range(50)]
    assert await letters(store, "nobody") == []


async def test_requeue_when_done_then_the_entry_is_open_again_and_ends_anew(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await give_up(store, ann, "e1", failures=2)
    letter = (await letters(store))[0]
    assert await store.queue.requeue(letter.id, "acme")
    assert not await store.queue.requeue(letter.id, "acme")
    assert await letters(store) == []
    assert await state_of(store, ann, "e1") == ("accepted", "", 0)
    entries = await open_entries(store)
    assert [(entry.turn, entry.attempts) for entry in entries] == [(replace(said(ann, "e1", "said e1"), seq=1), 0)]
    await settle_all(store, ann)
    assert await state_of(store, ann, "e1") == ("stored", "", 0)
    assert await store.queue.fresh(ann) == [said(ann, "e1").id]


async def test_requeue_when_a_day_went_by_then_the_event_ends_all_the_same(
    store: RedisStore, admins: list[Redis]
) -> None:
    ann = await store.subjects.open("acme", "ann")
    yesterday = utc_now().timestamp() - DAY
    turns = RedisTurns(store.client, store.subjects, store.audit, now=lambda: yesterday)
    await turns.accept(ann, [said(ann, "e1")])
    lease = await lease_of(store, ann)
    await store.queue.failed(lease, (await open_entries(store))[0], "poison", give_up=True)
    assert await store.queue.requeue((await letters(store))[0].id, None)
    await settle_all(store, ann)
    assert await state_of(store, ann, "e1") == ("stored", "", 0)
    marks = [key for admin in admins for key in admin.keys("*:marks:*")]
    assert len(marks) == 1
    assert await store.client.run("TTL", marks[0]) > DAY


async def test_requeue_when_it_fails_again_then_is_a_dead_letter_again(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await give_up(store, ann, "e1")
    for _ in range(2):
        assert await store.queue.requeue((await letters(store))[0].id, None)
        lease = await lease_of(store, ann)
        await store.queue.failed(lease, (await open_entries(store))[0], "still", give_up=True)
        assert await state_of(store, ann, "e1") == ("dead_letter", "still", 1)
    assert len(await letters(store)) == 1


async def test_requeue_when_it_is_a_change_then_it_is_whole(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    change = Change(remove=(said(ann, "e1").id,), embed=False)
    await store.queue.submit(ann, change, None, revision=None)
    lease = await lease_of(store, ann)
    await store.queue.failed(lease, (await open_entries(store))[0], "poison", give_up=True)
    letter = (await letters(store))[0]
    assert (letter.kind, letter.event_id, letter.content, letter.subject) == ("change", "", "", ann)
    assert await store.queue.requeue(letter.id, None)
    assert [entry.change for entry in await open_entries(store)] == [change]


def memory(name: str, text: str = "keeps herons", version: int = 1) -> Record:
    then = from_unix(1_770_000_000)
    return Record(derived_uuid("a", name), "memory", version, text, "fact", then, then, then)


async def change_given_up(store: RedisStore, subject: Subject, change: Change) -> str:
    """A change that is a dead letter; gives its id."""
    submitted = await store.queue.submit(subject, change, None, revision=None)
    lease = await lease_of(store, subject)
    (entry,) = [one async for one in store.queue.entries(subject.partition, [submitted.id])]
    await store.queue.failed(lease, entry, "poison", give_up=True)
    return (await letters(store))[-1].id


async def forget_marks(store: RedisStore, subject: Subject) -> None:
    """What happens to marks after three days."""
    today = int(utc_now().timestamp() // DAY)
    for day in range(today - 5, today + 2):
        await store.client.run("DEL", Partition(subject.partition).marks(subject.id, day))


@pytest.mark.parametrize("later", [False, True])
async def test_requeue_when_what_it_would_keep_was_removed_since_then_it_is_done_and_leaves_nothing(
    store: RedisStore, later: bool
) -> None:
    ann = await store.subjects.open("acme", "ann")
    one = memory("one", version=2)
    letter = await change_given_up(store, ann, Change(put=(one,)))
    await store.queue.submit(ann, Change(remove=(one.id,)), None, revision=None)
    await settle_all(store, ann)
    if later:
        await forget_marks(store, ann)
    assert await store.queue.requeue(letter, "acme")
    assert not await store.queue.requeue(letter, "acme")
    assert await open_entries(store) == []
    assert await letters(store) == []
    partition = Partition(ann.partition)
    assert await store.client.run("EXISTS", partition.changes, partition.dead_marks) == 0


async def test_requeue_when_some_was_removed_since_then_the_rest_comes_back_however_often(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    one, two, three = memory("one"), memory("two"), memory("three")
    heat = {record.id: HeatState(1.0, 1, record.created_at) for record in (one, two)}
    await change_given_up(store, ann, Change(put=(one, two, three), heat=heat))
    gone: list[Record] = []
    for record in (one, two):
        gone.append(record)
        await store.queue.submit(ann, Change(remove=(record.id,)), None, revision=None)
        await settle_all(store, ann)
        assert await store.queue.requeue((await letters(store))[0].id, None)
        (entry,) = await open_entries(store)
        left = tuple(record for record in (one, two, three) if record not in gone)
        assert entry.change is not None
        assert (entry.change.put, entry.returned) == (left, True)
        assert entry.change.heat.keys() == {record.id for record in left} - {three.id}
        await store.queue.failed(await lease_of(store, ann), entry, "still", give_up=True)
        await forget_marks(store, ann)
    await store.queue.submit(ann, Change(remove=(three.id,)), None, revision=None)
    await settle_all(store, ann)
    assert await store.queue.requeue((await letters(store))[0].id, None)
    assert await open_entries(store) == []


async def test_requeue_when_it_was_removed_while_it_was_open_then_it_is_done_even_after_days(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    one = memory("one")
    await store.queue.submit(ann, Change(put=(one,)), None, revision=None)
    await store.queue.submit(ann, Change(remove=(one.id,)), None, revision=None)
    first, _ = await open_entries(store)
    await store.queue.failed(await lease_of(store, ann), first, "poison", give_up=True)
    await settle_all(store, ann)
    await forget_marks(store, ann)
    assert await store.queue.requeue((await letters(store))[0].id, None)
    assert await open_entries(store) == []


@pytest.mark.parametrize("later", [False, True])
async def test_requeue_when_it_was_kept_under_an_alias_and_removed_since_then_it_does_not_come_back(
    store: RedisStore, later: bool
) -> None:
    ann = await store.subjects.open("acme", "ann")
    one, two = memory("one"), memory("two")
    letter = await change_given_up(store, ann, Change(put=(one, two)))
    await store.queue.submit(ann, Change(remove=(alias(ann.id, one.id),)), None, revision=None)
    await settle_all(store, ann)
    if later:
        await forget_marks(store, ann)
    assert await store.queue.requeue(letter, None)
    assert [entry.change for entry in await open_entries(store)] == [Change(put=(two,))]


async def test_requeue_when_it_also_removes_then_that_is_done_without_what_is_gone(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    one, other = memory("one", version=2), memory("other")
    letter = await change_given_up(store, ann, Change(put=(one,), remove=(other.id,)))
    await store.queue.submit(ann, Change(remove=(one.id,)), None, revision=None)
    await settle_all(store, ann)
    assert await store.queue.requeue(letter, None)
    assert [entry.change for entry in await open_entries(store)] == [Change(remove=(other.id,))]


async def test_requeue_when_it_was_made_again_after_a_removal_then_it_comes_back(store: RedisStore) -> None:
    ann, bob = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "bob")
    one = memory("one")
    await give_up(store, ann, "e1")  # from now on removals are kept for longer
    await store.queue.submit(ann, Change(remove=(one.id,)), None, revision=None)
    await settle_all(store, ann)
    letter = await change_given_up(store, ann, Change(put=(one,)))
    await store.queue.submit(bob, Change(remove=(one.id,)), None, revision=None)  # not hers
    await settle_all(store, bob)
    assert await store.queue.requeue(letter, None)
    assert [entry.change for entry in await open_entries(store)] == [Change(put=(one,))]


async def test_removal_when_the_last_dead_letter_goes_then_it_is_not_kept_any_longer(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    partition = Partition(ann.partition)
    await store.queue.submit(ann, Change(remove=(memory("one").id,)), None, revision=None)
    assert await store.client.run("EXISTS", partition.dead_marks) == 0
    await settle_all(store, ann)
    for how in (store.queue.discard, store.queue.requeue):
        letter = await change_given_up(store, ann, Change(put=(memory("two"),)))
        await store.queue.submit(ann, Change(remove=(memory("one").id,)), None, revision=None)
        assert await store.client.run("HLEN", partition.dead_marks) == 1
        assert await how(letter, None)
        assert await store.client.run("EXISTS", partition.dead_marks) == 0


@pytest.mark.parametrize("how", ["requeue", "discard"])
async def test_requeue_and_discard_when_another_tenant_asks_then_refused(store: RedisStore, how: str) -> None:
    ann = await store.subjects.open("acme", "ann")
    await give_up(store, ann, "e1")
    letter = (await letters(store))[0]
    call = getattr(store.queue, how)
    for bad in (
        *("", "1", "-", "1-", "1-2", "1-2-3-4", "999-1-1", "x-1-1", "1-0-0", "²-1-1", "-1-1-1"),
        *(f"{letter.id}0", f"{letter.id}\n", "1" * 50 + letter.id),
    ):
        assert not await call(bad, None)
    assert not await call(letter.id, "other")
    assert await letters(store) == [letter]
    assert await call(letter.id, "acme")


async def test_discard_when_done_then_the_event_ends_as_rejected(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await give_up(store, ann, "e1")
    await store.queue.submit(ann, Change(), None, revision=None)
    lease = await lease_of(store, ann)
    await store.queue.failed(lease, (await open_entries(store))[0], "poison", give_up=True)
    for letter in await letters(store):
        assert await store.queue.discard(letter.id, "acme")
        assert not await store.queue.discard(letter.id, "acme")
    assert await letters(store) == []
    assert await state_of(store, ann, "e1") == ("rejected", "discarded", 1)
    partition = Partition(ann.partition)
    assert await store.client.run("EXISTS", partition.changes, partition.dead_marks, partition.queue) == 1
    assert await store.queue.depth() == 0


async def test_dead_letters_when_the_person_was_erased_then_are_dropped(store: RedisStore, connect: Connect) -> None:
    ann, bob = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "bob")
    await give_up(store, ann, "e1")
    await give_up(store, bob, "e1")
    old = next(letter for letter in await letters(store) if letter.subject == ann)
    async with connect() as other:
        await erase(other, ann)
        assert not await store.queue.requeue(old.id, "acme")
        new = await other.subjects.open("acme", "ann")
        assert [letter.subject for letter in await letters(other)] == [bob]
        left = await other.client.run("XRANGE", Partition(ann.partition).dead, "-", "+")
        assert ann.id not in {fields[b"s"].decode() for _, fields in left}
        assert await other.queue.depth() == 0
        assert await other.turns.state(new, "e1") is None


async def test_failed_when_the_epoch_is_over_then_no_dead_letter_is_left(store: RedisStore, connect: Connect) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1")])
    await store.queue.submit(ann, Change(), None, revision=None)
    entries = await open_entries(store)
    lease = await lease_of(store, ann)
    async with connect() as other:
        await erase(other, ann)
    for entry in entries:
        await store.queue.failed(lease, entry, "poison", give_up=True)
    partition = Partition(ann.partition)
    assert await store.client.run("EXISTS", partition.dead, partition.changes, partition.dead_marks) == 0
    assert await store.queue.depth() == 0


async def test_requeue_when_the_answer_is_lost_then_is_done_once_and_says_so(
    valkey: Valkey, master_keys: MasterKeys
) -> None:
    async with losing_answers(valkey) as (url, lose), RedisStore.connect(url, master_keys, EXPECTED) as store:
        ann = await store.subjects.open("acme", "ann")
        await give_up(store, ann, "e1")
        await give_up(store, ann, "e2")
        first, second = await letters(store)
        assert await store.queue.requeue(first.id, None)  # loads the script
        lose(1)
        assert await store.queue.requeue(second.id, None)
        assert [entry.turn.event_id for entry in await open_entries(store) if entry.turn] == ["e1", "e2"]
        await settle_all(store, ann)
        letter = await change_given_up(store, ann, Change(put=(memory("one"),)))
        await store.queue.submit(ann, Change(remove=(memory("one").id,)), None, revision=None)
        await settle_all(store, ann)
        lose(1)
        assert await store.queue.requeue(letter, None)
        assert await open_entries(store) == []
