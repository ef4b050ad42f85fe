from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest
from redis import Redis

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown, Exists, Stale
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Acceptance
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_turns import RedisTurns
from tests.stores.redis_fixtures import EXPECTED, Connect, Valkey, erase, losing_answers, open_entries, said

DAY = 86_400


async def test_accept_when_new_then_turn_entry_and_mark_are_there(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    turns = [said(ann, "e1", "one", name="Ann"), said(ann, "e2", "二", role="assistant", session_id="")]
    accepted = await store.turns.accept(ann, turns)
    assert [(one.memory_id, one.duplicate) for one in accepted] == [(turn.id, False) for turn in turns]
    assert [one.seq for one in accepted] == [1, 2]
    kept = [replace(turn, seq=seq) for seq, turn in enumerate(turns, 1)]
    assert await store.turns.recent(ann, 20) == kept
    assert [(e.id, e.subject, e.turn, e.change, e.attempts) for e in await open_entries(store)] == [
        (one.entry, ann, turn, None, 0) for one, turn in zip(accepted, kept, strict=True)
    ]


async def test_accept_when_repeated_then_duplicate_and_nothing_is_written(store: RedisStore, connect: Connect) -> None:
    ann = await store.subjects.open("acme", "ann")
    turn = said(ann, "e1")
    await store.turns.accept(ann, [turn])
    async with connect() as other:
        later = replace(turn, timestamp=utc_now())
        assert await other.turns.accept(ann, [later]) == [Acceptance(turn.id, True, "")]
    assert await store.turns.recent(ann, 20) == [replace(turn, seq=1)]
    assert await store.queue.depth() == 1


async def test_accept_when_only_repeats_may_come_then_anything_new_keeps_all_of_it_out(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    old, new = said(ann, "e1"), said(ann, "e2", "other")
    await store.turns.accept(ann, [old])
    before = await store.queue.depth(), await store.turns.accepted(ann), await store.turns.recent(ann, 20)
    assert await store.turns.accept(ann, [old, old], repeats_only=True) == [Acceptance(old.id, True, "")] * 2
    for turns in ([new], [old, new], [new, old]):
        assert await store.turns.accept(ann, turns, repeats_only=True) == []
    assert (await store.queue.depth(), await store.turns.accepted(ann), await store.turns.recent(ann, 20)) == before
    assert await store.turns.state(ann, "e2") is None
    assert not (await store.turns.accept(ann, [new]))[0].duplicate


@pytest.mark.parametrize("change", ["content", "role", "session_id", "name"])
async def test_accept_when_the_event_had_other_content_then_conflict_and_nothing_is_written(
    store: RedisStore, change: str
) -> None:
    ann = await store.subjects.open("acme", "ann")
    turn = said(ann, "e1")
    await store.turns.accept(ann, [turn])
    other = replace(turn, **{change: "assistant"})  # type: ignore[arg-type]  # each of the four is a text
    with pytest.raises(Exists) as refused:
        await store.turns.accept(ann, [said(ann, "e0"), other, said(ann, "e2")])
    assert (refused.value.reason, refused.value.metadata["index"]) == ("event_id_conflict", "1")
    assert await store.turns.recent(ann, 20) == [replace(turn, seq=1)]
    assert await store.queue.depth() == 1


async def test_accept_when_a_batch_repeats_itself_then_the_first_wins(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    accepted = await store.turns.accept(ann, [said(ann, "e1"), said(ann, "e1"), said(ann, "e2", "other")])
    assert [one.duplicate for one in accepted] == [False, True, False]
    assert await store.queue.depth() == 2
    with pytest.raises(Exists):
        await store.turns.accept(ann, [said(ann, "e3"), said(ann, "e3", "other")])
    assert await store.queue.depth() == 2


async def test_accept_when_two_users_use_one_event_id_then_both_are_kept(store: RedisStore) -> None:
    for tenant, user in (("acme", "ann"), ("acme", "bob"), ("other", "ann")):
        subject = await store.subjects.open(tenant, user)
        assert not (await store.turns.accept(subject, [said(subject, "e1", user + tenant)]))[0].duplicate
        assert [turn.content for turn in await store.turns.recent(subject, 20)] == [user + tenant]


async def test_accept_when_many_replicas_race_with_one_event_then_exactly_one_keeps_it(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    async with connect() as other:
        answers = await asyncio.gather(
            *(turns.accept(ann, [said(ann, "e1")]) for _ in range(20) for turns in (store.turns, other.turns))
        )
    assert sorted(answer[0].duplicate for answer in answers) == [False] + [True] * 39
    assert await store.queue.depth() == 1


async def test_accept_when_the_epoch_is_over_then_stale_and_nothing_is_written(
    store: RedisStore, connect: Connect
) -> None:
    old = await store.subjects.open("acme", "ann")
    async with connect() as other:
        await erase(other, old)
        with pytest.raises(Stale):
            await store.turns.accept(old, [said(old, "e1")])
        assert await store.queue.depth() == 0
        new = await store.subjects.open("acme", "ann")
        assert not (await store.turns.accept(new, [said(new, "e1")]))[0].duplicate


@pytest.mark.parametrize(("later", "duplicate"), [(DAY - 1, True), (3 * DAY, False)])
async def test_accept_when_time_passes_then_marks_last_a_day_at_least(
    store: RedisStore, later: int, duplicate: bool
) -> None:
    ann = await store.subjects.open("acme", "ann")
    for first in (1_770_000_000.0, 1_770_076_799.0):  # the second is the last moment of a day
        clock = [first]
        turns = RedisTurns(store.client, store.subjects, store.audit, now=partial(clock.__getitem__, 0))
        turn = said(ann, f"e{first}")
        await turns.accept(ann, [turn])
        clock[0] = first + later
        assert (await turns.accept(ann, [turn]))[0].duplicate is duplicate


async def test_accept_when_another_replica_s_clock_is_behind_midnight_then_still_duplicate(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    ahead = RedisTurns(store.client, store.subjects, store.audit, now=lambda: 1_770_076_801.0)
    behind = RedisTurns(store.client, store.subjects, store.audit, now=lambda: 1_770_076_799.0)
    await ahead.accept(ann, [said(ann, "e1")])
    assert (await behind.accept(ann, [said(ann, "e1")]))[0].duplicate


async def test_accept_when_marks_are_written_then_every_key_of_theirs_expires(
    store: RedisStore, admins: list[Redis]
) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1")])
    for kind, least, most in (("marks", DAY, 3 * DAY), ("recent", 3500, 3600)):
        keys = [key for admin in admins for key in admin.keys(f"*:{kind}:*")]
        assert len(keys) == 1
        assert least < await store.client.run("TTL", keys[0]) <= most


async def test_accept_when_content_is_as_large_as_allowed_then_is_kept_whole(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    turn = said(ann, "e1", "记" * 100_000)
    await store.turns.accept(ann, [turn])
    assert await store.turns.recent(ann, 1) == [replace(turn, seq=1)]


async def test_recent_when_there_are_many_then_gives_the_newest_oldest_first(connect: Connect) -> None:
    async with connect(short_term_turns=5) as store:
        ann = await store.subjects.open("acme", "ann")
        for number in range(4):
            await store.turns.accept(ann, [said(ann, f"{number}-{part}", f"{number}-{part}") for part in range(3)])
        assert [turn.content for turn in await store.turns.recent(ann, 3)] == ["3-0", "3-1", "3-2"]
        assert [turn.content for turn in await store.turns.recent(ann, 99)] == ["2-1", "2-2", "3-0", "3-1", "3-2"]
        assert await store.turns.recent(ann, 0) == []


async def test_recent_when_its_time_is_over_then_is_empty_but_nothing_leaves_the_queue(connect: Connect) -> None:
    async with connect(short_term_ttl_seconds=1) as store:
        ann = await store.subjects.open("acme", "ann")
        await store.turns.accept(ann, [said(ann, "e1")])
        assert len(await store.turns.recent(ann, 20)) == 1
        await asyncio.sleep(1.1)
        assert await store.turns.recent(ann, 20) == []
        assert await store.queue.depth() == 1


async def test_accept_when_an_event_is_handed_in_then_it_is_recorded_once_with_the_turn(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    event = AuditEvent("v1", utc_now(), "memory.add", "acme", "ann", "memory/1", "AddMemory", "ok", "key_1", "10.0.0.1")
    await store.turns.accept(ann, [said(ann, "e1")], event)
    await store.turns.accept(ann, [said(ann, "e1")], event._replace(id="v2"))
    with pytest.raises(Exists):
        await store.turns.accept(ann, [said(ann, "e1", "other")], event._replace(id="v3"))
    assert [found async for found in store.audit.tail("acme", 10)] == [event]


async def test_accept_when_the_answer_is_lost_then_answers_as_if_it_were_not(
    valkey: Valkey, master_keys: MasterKeys
) -> None:
    async with (
        losing_answers(valkey) as (url, lose),
        RedisStore.connect(url, master_keys, EXPECTED) as store,
    ):
        ann = await store.subjects.open("acme", "ann")
        await store.turns.accept(ann, [said(ann, "e0")])
        lose(1)
        accepted = await store.turns.accept(ann, [said(ann, "e1"), said(ann, "e1"), said(ann, "e2", "b")])
        assert [one.duplicate for one in accepted] == [False, True, False]
        assert [entry.id for entry in await open_entries(store)][1:] == [accepted[0].entry, accepted[2].entry]
        assert [one.seq for one in accepted] == [2, 0, 3]
        assert len(await store.turns.recent(ann, 20)) == 3
        lose(2)
        with pytest.raises(BackendDown):
            await store.turns.accept(ann, [said(ann, "e3")])
        await store.ping()
        assert (await store.turns.accept(ann, [said(ann, "e3")]))[0].duplicate
        assert await store.queue.depth() == 4


async def test_open_when_the_answer_is_lost_then_gives_the_subject_that_was_made(
    valkey: Valkey, master_keys: MasterKeys
) -> None:
    async with (
        losing_answers(valkey) as (url, lose),
        RedisStore.connect(url, master_keys, EXPECTED) as store,
    ):
        bob = await store.subjects.open("acme", "bob")
        lose(1)
        ann = await store.subjects.open("acme", "ann")
        made = await store.client.run("HLEN", f"{{p{ann.partition:03d}}}:lookup")
        assert made == (2 if bob.partition == ann.partition else 1)


async def test_accept_when_another_store_forgot_its_scripts_then_they_are_loaded_again(
    store: RedisStore, valkey: Valkey
) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1")])
    valkey.stop()
    valkey.start()
    assert (await store.turns.accept(ann, [said(ann, "e1")]))[0].duplicate
