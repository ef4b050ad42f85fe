from __future__ import annotations

from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import Connect, erase, said


async def test_open_entries_when_many_subjects_wrote_then_gives_each_in_order_after_a_restart(
    store: RedisStore, connect: Connect
) -> None:
    wrote: dict[str, list[str]] = {}
    for user in ("ann", "bob", "cat"):
        subject = await store.subjects.open("acme", user)
        for start in range(0, 150, 50):  # more than a page
            turns = [said(subject, str(number), str(number)) for number in range(start, start + 50)]
            wrote.setdefault(subject.id, []).extend(one.entry for one in await store.turns.accept(subject, turns))
    async with connect() as restarted:
        assert await restarted.queue.depth() == 450
        found: dict[str, list[str]] = {}
        async for entry in restarted.queue.open_entries():
            found.setdefault(entry.subject.id, []).append(entry.id)
    assert found == wrote


async def test_close_when_done_then_entries_are_gone_and_again_changes_nothing(store: RedisStore) -> None:
    ann, bob = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "bob")
    for subject in (ann, bob):
        await store.turns.accept(subject, [said(subject, "e1"), said(subject, "e2")])
    entries = [entry async for entry in store.queue.open_entries()]
    closed = [entry for entry in entries if entry.turn.event_id == "e1"]
    await store.queue.close(closed)
    await store.queue.close(closed)
    await store.queue.close([])
    assert await store.queue.depth() == 2
    assert {entry.turn.event_id async for entry in store.queue.open_entries()} == {"e2"}


async def test_open_entries_when_closed_while_reading_then_reaches_the_end(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, str(number)) for number in range(130)])
    seen = 0
    async for entry in store.queue.open_entries():
        seen += 1
        await store.queue.close([entry])
    assert (seen, await store.queue.depth()) == (130, 0)


async def test_open_entries_when_the_subject_was_erased_elsewhere_then_closes_and_does_not_give(
    store: RedisStore, connect: Connect
) -> None:
    ann, bob = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "bob")
    await store.turns.accept(ann, [said(ann, "e1"), said(ann, "e2")])
    await store.turns.accept(bob, [said(bob, "e1")])
    async with connect() as other:
        await erase(other, ann)
        new = await other.subjects.open("acme", "ann")
        await other.turns.accept(new, [said(new, "e9")])
    assert {(e.subject.user_id, e.turn.event_id) async for e in store.queue.open_entries()} == {
        ("bob", "e1"),
        ("ann", "e9"),
    }
    assert await store.queue.depth() == 2


async def test_open_entries_when_one_does_not_open_then_the_others_come_and_it_stays(
    store: RedisStore, caplog: object
) -> None:
    ann = await store.subjects.open("acme", "ann")
    bad = (await store.turns.accept(ann, [said(ann, "e1")]))[0].entry
    await store.turns.accept(ann, [said(ann, "e2")])
    stream = f"{{p{ann.partition:03d}}}:queue"
    await store.client.run("XADD", stream, "*", "s", ann.id, "e", "1", "i", bytes(16), "t", b"damaged")
    assert [e.turn.event_id async for e in store.queue.open_entries()] == ["e1", "e2"]
    assert await store.queue.depth() == 3
    assert bad.startswith(f"{ann.partition}/")
