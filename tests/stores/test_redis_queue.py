from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta

import pytest
from redis import Redis

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown, Stale
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import from_unix, utc_now
from memoryos_server.domain.ports import Change, HeatState, Record, Settlement, Turn
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
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

WHEN = from_unix(1_770_000_000.123456)


def record(text: str = "Ann lives in Oslo", **other: object) -> Record:
    plain = Record(uuid7(), "fact", 1, text, "residence", WHEN, WHEN, WHEN)
    return replace(plain, **other)  # type: ignore[arg-type]  # fields of a record


def removal(*turns: Turn) -> Change:
    return Change(
        remove=tuple(turn.id for turn in turns),
        events={turn.id: (turn.event_id, turn.session_id) for turn in turns},
    )


async def test_open_entries_when_many_subjects_wrote_then_gives_each_in_order_after_a_restart(
    store: RedisStore, connect: Connect
) -> None:
    wrote: dict[str, list[tuple[str, int]]] = {}
    for user in ("ann", "bob", "cat"):
        subject = await store.subjects.open("acme", user)
        for start in range(0, 150, 50):  # more than a page
            turns = [said(subject, str(number), str(number)) for number in range(start, start + 50)]
            accepted = await store.turns.accept(subject, turns)
            wrote.setdefault(subject.id, []).extend((one.entry, one.seq) for one in accepted)
    async with connect() as restarted:
        assert await restarted.queue.depth() == sum((await restarted.queue.backlog()).values()) == 450
        found: dict[str, list[tuple[str, int]]] = {}
        for entry in await open_entries(restarted):
            assert entry.turn
            found.setdefault(entry.subject.id, []).append((entry.id, entry.turn.seq))
    assert found == wrote
    assert [seq for _, seq in found[subject.id]] == list(range(1, 151))


async def test_open_entries_when_begun_behind_one_then_gives_only_later_ones(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    accepted = await store.turns.accept(ann, [said(ann, f"e{number}") for number in range(100)])
    behind = [entry.id async for entry in store.queue.open_entries(ann.partition, accepted[69].entry)]
    assert behind == [one.entry for one in accepted[70:]]
    assert [entry async for entry in store.queue.open_entries(ann.partition, accepted[-1].entry)] == []


async def test_open_entries_when_the_subject_was_erased_elsewhere_then_closes_and_does_not_give(
    store: RedisStore, connect: Connect
) -> None:
    ann, bob = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "bob")
    await store.turns.accept(ann, [said(ann, "e1"), said(ann, "e2")])
    await store.queue.submit(ann, Change(put=(record(),)), None, revision=None)
    await store.turns.accept(bob, [said(bob, "e1")])
    async with connect() as other:
        await erase(other, ann)
        new = await other.subjects.open("acme", "ann")
        await other.turns.accept(new, [said(new, "e9")])
    assert {(e.subject.user_id, e.turn.event_id) for e in await open_entries(store) if e.turn} == {
        ("bob", "e1"),
        ("ann", "e9"),
    }
    assert await store.queue.depth() == 2
    assert await store.client.run("HLEN", Partition(ann.partition).changes) == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"t": b"damaged"},
        {"i": b"short"},
        {"s": b"nobody"},
        {"s": b"\xff"},
        {"e": None},
        {"q": None},
        {"t": None, "c": b"no change"},
    ],
    ids=lambda damage: "+".join(damage),
)
async def test_open_entries_when_one_does_not_open_then_the_others_come_and_it_becomes_a_dead_letter(
    store: RedisStore, damage: dict[str, bytes | None]
) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1")])
    plain = {"s": ann.id, "e": "1", "q": "9", "m": b"m" * 16, "i": bytes(16), "t": b"x"}
    fields = [part for pair in ({**plain, **damage}).items() if pair[1] is not None for part in pair]
    await store.client.run("XADD", Partition(ann.partition).queue, "*", *fields)
    await store.turns.accept(ann, [said(ann, "e2")])
    for _ in range(2):  # nobody has the partition: it stays
        assert [e.turn.event_id for e in await open_entries(store) if e.turn] == ["e1", "e2"]
        assert await store.queue.depth() == 3
    await lease_of(store, ann)
    assert [e.turn.event_id for e in await open_entries(store) if e.turn] == ["e1", "e2"]
    assert await store.queue.depth() == 2
    letters = [letter async for letter in store.queue.dead_letters(None)]
    assert [(letter.kind, letter.event_id, letter.content) for letter in letters] == [("unreadable", "", "")]
    assert letters[0].subject == (None if "s" in damage else ann)


async def test_open_entries_when_a_turn_is_damaged_then_its_event_ends_as_dead_letter(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    accepted = (await store.turns.accept(ann, [said(ann, "e1")]))[0]
    # The same entry with other bytes, as a damaged disk would give it back.
    stream, stream_id = Partition(ann.partition).queue, accepted.entry.partition("/")[2]
    fields = (await store.client.run("XRANGE", stream, stream_id, stream_id))[0][1]
    await store.client.run("DEL", stream)
    fields[b"t"] = fields[b"t"][:-1] + bytes([fields[b"t"][-1] ^ 1])
    await store.client.run("XADD", stream, stream_id, *(part for pair in fields.items() for part in pair))
    await lease_of(store, ann)
    assert await open_entries(store) == []
    state = await store.turns.state(ann, "e1")
    assert state
    assert (state.state, state.reason, state.attempts) == ("dead_letter", "unreadable", 1)


async def test_submit_when_done_then_the_change_is_open_as_it_was_given(store: RedisStore, connect: Connect) -> None:
    ann = await store.subjects.open("acme", "ann")
    full = record(
        version=3,
        until=WHEN + timedelta(days=1),
        tags=("a", "二"),
        sources=(uuid7(), uuid7()),
        session_id="s-1",
        data={"confidence": 0.5, "list": [1, None, {"x": "y"}]},
        history=({"version": 2, "summary": "old"}, {"version": 1}),
    )
    change = Change(
        put=(full, record()),
        remove=(uuid7(),),
        heat={full.id: HeatState(1.25, 3, WHEN)},
        embed=False,
        events={uuid7(): ("e1", "s-1")},
    )
    first = await store.queue.submit(ann, change, None, revision=None)
    turn = said(ann, "e1")
    await store.turns.accept(ann, [turn])
    assert (first.subject, first.change, first.turn) == (ann, change, None)
    async with connect() as other:
        entries = await open_entries(other)
    assert entries[0] == first
    assert entries[1].turn == replace(turn, seq=1)


async def test_submit_when_the_revision_is_not_the_one_it_was_based_on_then_stale_and_nothing_is_written(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    assert await store.queue.revision(ann) == 0
    async with connect() as other:
        await other.queue.submit(ann, Change(put=(record(),)), None, revision=0)
        await other.queue.submit(ann, Change(put=(record(),)), None, revision=None)
        with pytest.raises(Stale):
            await store.queue.submit(ann, Change(put=(record(),)), None, revision=0)
        with pytest.raises(Stale):
            await store.queue.submit(ann, Change(put=(record(),)), None, revision=3)
    assert (await store.queue.revision(ann), await store.queue.depth()) == (2, 2)
    await store.queue.submit(ann, Change(put=(record(),)), None, revision=2)


async def test_submit_when_two_replicas_read_modify_and_write_then_no_update_is_lost(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    written: list[int] = []

    async def add(replica: RedisStore) -> None:
        for _ in range(10):
            while True:
                revision = await replica.queue.revision(ann)
                try:
                    await replica.queue.submit(ann, Change(), None, revision=revision)
                except Stale:
                    continue
                written.append(revision)
                break

    async with connect() as other:
        await asyncio.gather(add(store), add(other), add(store), add(other))
    assert sorted(written) == list(range(40))
    assert await store.queue.revision(ann) == await store.queue.depth() == 40


async def test_submit_when_the_epoch_is_over_then_stale_and_nothing_is_written(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    async with connect() as other:
        await erase(other, ann)
    with pytest.raises(Stale):
        await store.queue.submit(ann, Change(put=(record(),)), None, revision=None)
    assert await store.queue.depth() == 0
    assert await store.client.run("HLEN", Partition(ann.partition).changes) == 0


async def test_submit_when_an_event_is_handed_in_then_it_is_recorded_once(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    event = AuditEvent("v1", utc_now(), "memory.tag", "acme", "ann", "memory/1", "AddTags", "ok", "key_1", "10.0.0.1")
    await store.queue.submit(ann, Change(), event, revision=0)
    with pytest.raises(Stale):
        await store.queue.submit(ann, Change(), event._replace(id="v2"), revision=0)
    assert [found async for found in store.audit.tail("acme", 10)] == [event]


async def test_submit_when_the_answer_is_lost_then_is_done_once_and_says_so(
    valkey: Valkey, master_keys: MasterKeys
) -> None:
    async with losing_answers(valkey) as (url, lose), RedisStore.connect(url, master_keys, EXPECTED) as store:
        ann = await store.subjects.open("acme", "ann")
        await store.queue.submit(ann, Change(), None, revision=0)
        lose(1)
        entry = await store.queue.submit(ann, Change(put=(record(),)), None, revision=1)
        assert [one.id for one in await open_entries(store)][1:] == [entry.id]
        assert await store.queue.revision(ann) == 2
        lose(2)
        with pytest.raises(BackendDown):
            await store.queue.submit(ann, Change(), None, revision=2)


async def test_submit_when_ten_thousand_records_and_64_mib_then_comes_back_whole_and_leaves_nothing(
    store: RedisStore,
) -> None:
    ann = await store.subjects.open("acme", "ann")
    change = Change(put=tuple(record("记" * 2_200 + str(number)) for number in range(10_000)))
    await store.queue.submit(ann, change, None, revision=None)
    assert [entry.change for entry in await open_entries(store)] == [change]
    assert await store.client.run("STRLEN", "none") == 0  # the store answers at once
    await settle_all(store, ann)
    assert await store.queue.depth() == 0
    assert await store.client.run("HLEN", Partition(ann.partition).changes) == 0


async def test_submit_when_a_stored_turn_is_removed_then_it_leaves_everything_at_once(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    turns = [said(ann, f"e{number}", f"turn {number}", session_id="s-1" if number else "s-0") for number in range(4)]
    await store.turns.accept(ann, turns)
    await settle_all(store, ann)
    await store.heat.put(ann, {turns[0].id: HeatState(1, 1, WHEN)})
    await store.queue.submit(ann, removal(turns[0], turns[2]), None, revision=None)
    assert [turn.event_id for turn in await store.turns.recent(ann, 20)] == ["e1", "e3"]
    assert await store.queue.fresh(ann) == [turns[1].id, turns[3].id]
    assert await store.heat.get(ann, [turns[0].id]) == {}
    sessions, _ = await store.turns.sessions(ann, "", 10)
    assert [(session.id, session.turns) for session in sessions] == [("s-1", 2)]
    for event_id in ("e0", "e2"):
        state = await store.turns.state(ann, event_id)
        assert state
        assert (state.state, state.reason) == ("rejected", "deleted")
    # Said again, the event is known, and does not bring the turn back.
    assert (await store.turns.accept(ann, [turns[0]]))[0].duplicate
    # Removed again, it is not counted again.
    await store.queue.submit(ann, removal(turns[2]), None, revision=None)
    assert (await store.turns.sessions(ann, "", 10))[0][0].turns == 2


async def test_submit_when_an_open_turn_is_removed_then_its_entry_goes_and_its_settlement_changes_nothing(
    store: RedisStore,
) -> None:
    ann = await store.subjects.open("acme", "ann")
    turn = said(ann, "e1")
    await store.turns.accept(ann, [turn])
    entries = await open_entries(store)
    lease = await lease_of(store, ann)
    await store.queue.started(lease, entries)
    change = await store.queue.submit(ann, removal(turn), None, revision=None)
    await store.queue.settle(lease, [Settlement(entry) for entry in entries])
    assert await store.queue.failed(lease, entries[0], "late", give_up=True) == 0
    state = await store.turns.state(ann, "e1")
    assert state
    assert (state.state, state.reason) == ("rejected", "deleted")
    assert await store.queue.fresh(ann) == []
    assert [entry.id for entry in await open_entries(store)] == [change.id]
    assert [letter async for letter in store.queue.dead_letters(None)] == []
    assert await store.client.run("HLEN", Partition(ann.partition).attempts) == 0


async def test_submit_when_a_given_up_turn_is_removed_then_its_dead_letter_goes_and_cannot_come_back(
    store: RedisStore, admins: list[Redis]
) -> None:
    ann = await store.subjects.open("acme", "ann")
    turn = said(ann, "e1")
    await store.turns.accept(ann, [turn])
    lease = await lease_of(store, ann)
    await store.queue.failed(lease, (await open_entries(store))[0], "poison", give_up=True)
    letter = await anext(store.queue.dead_letters(None))
    # Days later: the mark has expired.
    for admin in admins:
        for key in admin.keys("*:marks:*"):
            admin.delete(key)
    state = await store.turns.state(ann, "e1")
    assert state
    assert state.state == "dead_letter"
    await store.queue.submit(ann, removal(turn), None, revision=None)
    assert [one async for one in store.queue.dead_letters(None)] == []
    assert not await store.queue.requeue(letter.id, None)
    assert await store.turns.state(ann, "e1") is None


async def test_open_entries_when_read_then_nothing_of_a_person_is_logged(
    store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    ann = await store.subjects.open("acme", "ann-the-user")
    await store.client.run("XADD", Partition(ann.partition).queue, "*", "s", ann.id, "e", "1", "t", b"a secret text")
    await lease_of(store, ann)
    with caplog.at_level(logging.DEBUG):
        assert await open_entries(store) == []
    assert "becomes a dead letter" in caplog.text
    assert "secret" not in caplog.text
    assert "ann-the-user" not in caplog.text
