from __future__ import annotations

import asyncio
from collections import Counter

from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import Connect, open_entries, said, settle_all


async def test_accept_when_sixteen_write_for_one_then_the_order_is_dense_and_that_of_the_queue(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    answered: dict[str, int] = {}

    async def write(replica: RedisStore, writer: int) -> None:
        before = 0
        for number in range(0, 60, 3):
            turns = [said(ann, f"{writer}-{number + part}", session_id=f"s-{writer % 3}") for part in range(3)]
            accepted = await replica.turns.accept(ann, turns)
            seqs = [one.seq for one in accepted]
            assert seqs == list(range(seqs[0], seqs[0] + 3))  # a batch is not divided
            assert seqs[0] > before
            before = seqs[-1]
            answered.update((turn.event_id, one.seq) for turn, one in zip(turns, accepted, strict=True))

    async with connect() as other:
        await asyncio.gather(*(write(store if writer % 2 else other, writer) for writer in range(16)))
    entries = await open_entries(store)
    assert [entry.turn.seq for entry in entries if entry.turn] == list(range(1, 961))
    assert {entry.turn.event_id: entry.turn.seq for entry in entries if entry.turn} == answered
    recent = await store.turns.recent(ann, 20)
    assert [turn.seq for turn in recent] == list(range(941, 961))
    sessions, _ = await store.turns.sessions(ann, "", 10)
    assert {session.id: session.turns for session in sessions} == {"s-0": 360, "s-1": 300, "s-2": 300}
    await settle_all(store, ann)
    assert await store.queue.fresh(ann) == [entry.turn.id for entry in entries if entry.turn]


async def test_accept_when_two_hundred_write_at_once_then_each_has_its_own_order(store: RedisStore) -> None:
    async def write(user: str) -> str:
        subject = await store.subjects.open("acme", user)
        for number in range(5):
            accepted = await store.turns.accept(subject, [said(subject, f"e{number}", f"{user} {number}")])
            assert [one.seq for one in accepted] == [number + 1]
        return subject.id

    ids = await asyncio.gather(*(write(f"user-{number}") for number in range(200)))
    found: dict[str, list[tuple[int, str]]] = {}
    for entry in await open_entries(store):
        assert entry.turn
        found.setdefault(entry.subject.id, []).append((entry.turn.seq, entry.turn.event_id))
    assert found == {subject_id: [(number + 1, f"e{number}") for number in range(5)] for subject_id in ids}
    backlog = await store.queue.backlog()
    assert backlog == Counter({int(subject_id[:2], 16): 0 for subject_id in ids}) + Counter(
        partition for subject_id in ids for partition in [int(subject_id[:2], 16)] * 5
    )
