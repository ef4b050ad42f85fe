"""The pipeline on the real embedded stores: order, retries, dead letters, end states, restarts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from memoryos_server.domain.core.faults import BackendDown, Stale, Upstream, UpstreamRejected
from memoryos_server.domain.memory.deadletters import DeadLetters
from memoryos_server.domain.memory.model import Verdict
from memoryos_server.domain.ports import Change, HeatState, Record
from tests.domain.pipeline_support import NEVER, THEN, Opened, opened_at, record, turn, until


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    async with opened_at(tmp_path) as made:
        yield made


async def ids(opened: Opened, user: str = "ann") -> set[str]:
    subject = await opened.subject(user)
    return {turn.content for turn in await opened.vectors.said(subject, "s", 0, 1000)}


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_turns_when_accepted_then_indexed_digested_in_order_and_stored(tmp_path: Path, mode: str) -> None:
    async with opened_at(tmp_path, mode=mode) as opened:
        contents = [f"heron {n}" for n in range(30)]
        await opened.say(*contents)
        if mode == "sync":
            assert await ids(opened) == set(contents)
        await until(lambda: len(opened.digest.said) == 30)
        assert opened.digest.of("ann") == contents
        await until(lambda: _drained(opened))
        assert {(await opened.state(c)).state for c in contents} == {"stored"}
        assert sorted(opened.indexer.indexed) == sorted(contents)  # each was embedded once
        assert await ids(opened) == set(contents)


async def _drained(opened: Opened) -> bool:
    return not await opened.redis.queue.depth()


async def test_verdicts_when_settled_then_they_are_the_events_states(opened: Opened) -> None:
    opened.digest.verdicts = {
        "hello": Verdict("rejected", "greeting", fresh=False),
        "again": Verdict("merged", "duplicate", turn(await opened.subject(), "first").id, fresh=False),
    }
    await opened.say("first", "hello", "again")
    await until(lambda: _drained(opened))
    hello, again, first = [await opened.state(e) for e in ("hello", "again", "first")]
    assert (hello.state, hello.reason) == ("rejected", "greeting")
    assert (again.state, again.related) == ("merged", first.memory_id)
    assert await opened.redis.queue.fresh(await opened.subject()) == [first.memory_id]
    assert await ids(opened) == {"first", "hello", "again"}  # every episode stays findable


async def test_settle_when_a_turn_was_just_added_then_its_digest_is_awaited(opened: Opened) -> None:
    await opened.say("a heron")
    await opened.pipeline.settle(await opened.subject(), 10)
    assert opened.digest.of("ann") == ["a heron"]


async def test_poison_when_it_keeps_failing_then_dead_letter_and_others_never_wait(opened: Opened) -> None:
    opened.digest.refuses["poison"] = ValueError("cannot be read")
    await opened.say("before")
    await opened.say("poison", "behind")
    await opened.say("other", user="ben")
    await until(lambda: opened.digest.of("ben") == ["other"])
    await until(lambda: opened.digest.of("ann") == ["before", "behind"])
    await until(lambda: _drained(opened))
    dead = await opened.state("poison")
    assert (dead.state, dead.attempts) == ("dead_letter", 5)
    letters = [letter async for letter in opened.redis.queue.dead_letters("default")]
    assert [(letter.event_id, letter.reason, letter.content) for letter in letters] == [
        ("poison", "ValueError", "poison")
    ]
    assert (await opened.state("behind")).state == "stored"


async def test_order_when_an_entry_recovers_after_failing_then_its_later_ones_come_after_it(opened: Opened) -> None:
    opened.digest.refuses["second"] = ValueError("not yet")
    await opened.say("first", "second", "third", "fourth")
    await until(lambda: _attempted(opened, "second", 2))
    assert opened.digest.of("ann") == ["first"]
    opened.digest.refuses.clear()
    await until(lambda: len(opened.digest.said) >= 4)
    assert opened.digest.of("ann") == ["first", "second", "third", "fourth"]


async def _attempted(opened: Opened, event_id: str, times: int) -> bool:
    return (await opened.state(event_id)).attempts >= times


async def test_acceptance_when_indexing_fails_unexpectedly_then_durable_degraded_and_dead_in_the_end(
    opened: Opened,
) -> None:
    subject = await opened.subject()
    opened.indexer.refuses["poison"] = UpstreamRejected("refused", status=422)
    (accepted,), late = await opened.pipeline.accept(subject, [turn(subject, "poison")], None)
    assert accepted.entry
    assert late
    assert not opened.pipeline.level.behind  # one bad text says nothing of the others
    await until(lambda: _is(opened, "poison", "dead_letter"))
    opened.indexer.refuses.clear()
    letters = DeadLetters(opened.redis.queue)
    (letter,) = (await letters.state("default")).dead_letters
    await letters.requeue(letter.id, "default")
    await until(lambda: _is(opened, "poison", "stored"))
    assert await ids(opened) == {"poison"}
    assert (await letters.state("default")).dead_letters == []


async def _is(opened: Opened, event_id: str, state: str, user: str = "ann") -> bool:
    return (await opened.state(event_id, user)).state == state


async def test_provider_when_it_is_out_for_all_then_nothing_is_counted(opened: Opened) -> None:
    opened.digest.refuses = {name: Upstream("the provider is down") for name in ("a", "b")}
    await opened.say("a")
    await opened.say("b", user="ben")
    await asyncio.sleep(1.0)
    assert [(await opened.state("a")).attempts, (await opened.state("b", "ben")).attempts] == [0, 0]
    opened.digest.refuses.clear()
    await until(lambda: _is(opened, "a", "stored"))
    await until(lambda: _is(opened, "b", "stored", "ben"))


async def test_discard_when_asked_for_then_the_event_is_rejected_and_stays_so(opened: Opened) -> None:
    opened.digest.refuses["poison"] = ValueError()
    await opened.say("poison")
    await until(lambda: _is(opened, "poison", "dead_letter"))
    letters = DeadLetters(opened.redis.queue)
    (letter,) = (await letters.state("default")).dead_letters
    await letters.discard(letter.id, "default")
    state = await opened.state("poison")
    assert (state.state, state.reason) == ("rejected", "discarded")
    assert await letters.requeue_all("default") == 0


async def test_engine_when_killed_before_a_flush_then_everything_is_written_and_digested_again(tmp_path: Path) -> None:
    async with opened_at(tmp_path, flush_interval=NEVER) as opened:
        contents = [f"heron {n}" for n in range(10)]
        await opened.say(*contents)
        await until(lambda: len(opened.digest.said) == 10)
        os.kill(opened.stores.pids()["vectors"], signal.SIGKILL)
        await until(lambda: _there(opened, set(contents)))
        assert await opened.redis.queue.depth() == 10
        await opened.pipeline.__aexit__()
        assert await opened.redis.queue.depth() == 0
        assert {(await opened.state(c)).state for c in contents} == {"stored"}
        assert opened.digest.of("ann")[-10:] == contents


async def _there(opened: Opened, contents: set[str]) -> bool:
    try:
        return await ids(opened) == contents
    except BackendDown:
        return False


async def test_start_when_entries_were_left_open_then_indexed_before_serving_and_counted(tmp_path: Path) -> None:
    async with opened_at(tmp_path, mode="async", digest=None, flush_interval=NEVER) as opened:
        await _die(opened)  # the worker is gone, as after a kill
        await opened.say("a", "b")
    async with opened_at(tmp_path, flush_interval=NEVER) as again:
        assert await ids(again) == {"a", "b"}
        await until(lambda: len(again.digest.said) == 2)


async def _die(opened: Opened) -> None:
    for task in opened.pipeline._tasks:
        task.cancel()
    await asyncio.gather(*opened.pipeline._tasks, return_exceptions=True)
    opened.pipeline._STOP_SECONDS = 0.0  # type: ignore[misc]


async def test_entry_when_the_process_died_of_it_five_times_then_dead_letter_and_neighbours_live(
    tmp_path: Path,
) -> None:
    async with opened_at(tmp_path, mode="async", digest=None, flush_interval=NEVER) as opened:
        await _die(opened)
        await opened.say("good", "killer", "late")
        subject = await opened.subject()
        entries = [entry async for entry in opened.redis.queue.open_entries(subject.partition)]
        lease = await opened.redis.queue.claim(subject.partition, 30)
        assert lease
        for _ in range(5):
            await opened.redis.queue.started(lease, entries[1:2])
        await opened.redis.queue.release(lease)
    async with opened_at(tmp_path) as again:
        await until(lambda: _drained(again))
        assert [(await again.state(e)).state for e in ("good", "killer", "late")] == ["stored", "dead_letter", "stored"]


async def test_change_when_made_then_visible_closed_and_its_heat_is_set(opened: Opened) -> None:
    subject = await opened.subject()
    made = record(subject, "one", "keeps herons")

    async def put() -> Change:
        return Change(put=(made,), heat={made.id: HeatState(2.0, 3, THEN)})

    assert not await opened.pipeline.change(subject, put)
    assert [r.text for r in await opened.vectors.records(subject, [made.id])] == ["keeps herons"]
    assert (await opened.redis.heat.get(subject, [made.id]))[made.id].count == 3
    await until(lambda: _drained(opened))


async def test_changes_when_many_read_and_write_one_record_then_none_is_lost(opened: Opened) -> None:
    subject = await opened.subject()

    async def add(tag: str) -> None:
        async def make() -> Change:
            found = await opened.vectors.records(subject, [record(subject, "one", "x").id])
            old = found[0] if found else record(subject, "one", "x", version=0)
            await asyncio.sleep(0.001)
            return Change(put=(replace(old, version=old.version + 1, tags=(*old.tags, tag)),))

        await opened.pipeline.change(subject, make)

    await asyncio.gather(*(add(f"t{n}") for n in range(16)))
    (found,) = await opened.vectors.records(subject, [record(subject, "one", "x").id])
    assert (found.version, sorted(found.tags)) == (17 - 1, sorted(f"t{n}" for n in range(16)))


async def test_change_when_the_revision_moved_on_then_made_again(opened: Opened) -> None:
    subject = await opened.subject()
    calls = 0

    async def make() -> Change:
        nonlocal calls
        calls += 1
        if calls == 1:  # another replica's change, between our reading and our writing
            await opened.redis.queue.submit(
                subject, Change(put=(record(subject, "theirs", "their word"),)), None, revision=None
            )
        return Change(put=(record(subject, "ours", "our word"),))

    assert not await opened.pipeline.change(subject, make)
    assert calls == 2
    found = await opened.vectors.records(subject, [record(subject, n, "").id for n in ("theirs", "ours")])
    assert {r.text for r in found} == {"their word", "our word"}  # theirs was applied before ours was made


async def test_change_when_the_searchable_side_hangs_then_a_create_is_queued_and_a_read_fails(opened: Opened) -> None:
    subject = await opened.subject()
    made = record(subject, "one", "keeps herons")

    async def put() -> Change:
        return Change(put=(made,))

    async def read() -> Change | None:
        await opened.vectors.records(subject, [made.id])
        return None

    os.kill(opened.stores.pids()["vectors"], signal.SIGSTOP)
    try:
        assert await opened.pipeline.change(subject, put, reads=False)
        with pytest.raises(BackendDown):
            await opened.pipeline.change(subject, read)
    finally:
        os.kill(opened.stores.pids()["vectors"], signal.SIGCONT)

    async def there() -> list[Record] | None:
        try:
            return await opened.vectors.records(subject, [made.id])
        except BackendDown:
            return None

    await until(there)


async def test_change_when_only_words_are_asked_for_then_meaning_follows_unless_it_was_removed(opened: Opened) -> None:
    subject = await opened.subject()
    made = [record(subject, str(n), f"heron {n}", kind="segment", type="qa") for n in range(100)]

    async def put() -> Change:
        return Change(put=tuple(made), embed=False)

    async def remove() -> Change:
        return Change(remove=(made[0].id,))

    await opened.pipeline.change(subject, put)
    assert len(await opened.vectors.records(subject, [m.id for m in made])) == 100
    await opened.pipeline.change(subject, remove)
    await until(lambda: _drained(opened))
    assert len(await opened.vectors.records(subject, [m.id for m in made])) == 99


async def test_change_when_the_caller_leaves_after_acceptance_then_it_is_applied(opened: Opened) -> None:
    subject = await opened.subject()
    made = record(subject, "one", "keeps herons")

    async def put() -> Change:
        return Change(put=(made,))

    call = asyncio.create_task(opened.pipeline.change(subject, put))
    async with asyncio.timeout(5):
        while not opened.pipeline._changes._under_way:  # noqa: ASYNC110  # the moment that is looked for has no event
            await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: opened.vectors.records(subject, [made.id]))


async def test_removed_turn_when_its_entry_is_still_open_then_it_never_comes_back(tmp_path: Path) -> None:
    async with opened_at(tmp_path, flush_interval=NEVER) as opened:
        said = await opened.say("a secret", "a heron")
        subject = await opened.subject()

        async def remove() -> Change:
            return Change(remove=(said[0].id,), events={said[0].id: (said[0].event_id, said[0].session_id)})

        await opened.pipeline.change(subject, remove)
        os.kill(opened.stores.pids()["vectors"], signal.SIGKILL)
        await until(lambda: _there(opened, {"a heron"}))
        await opened.pipeline.__aexit__()
        assert await ids(opened) == {"a heron"}
        state = await opened.state("a secret")
        assert (state.state, state.reason) == ("rejected", "deleted")


async def test_consolidation_when_short_term_memory_is_full_then_all_fresh_turns_once(tmp_path: Path) -> None:
    async with opened_at(tmp_path, short_term_turns=5) as opened:
        said = await opened.say(*(f"heron {n}" for n in range(5)))
        await until(lambda: opened.bundles.took)
        subject = await opened.subject()
        await until(lambda: _no_fresh(opened))
        assert opened.bundles.took[0] == [t.id for t in said]
        assert await opened.redis.queue.fresh(subject) == []


async def _no_fresh(opened: Opened) -> bool:
    return not await opened.redis.queue.fresh(await opened.subject())


async def test_stop_when_a_store_hangs_then_bounded(tmp_path: Path) -> None:
    async with opened_at(tmp_path, flush_interval=NEVER) as opened:
        await opened.say("a heron")
        opened.pipeline._STOP_SECONDS = 1.0  # type: ignore[misc]
        os.kill(opened.stores.pids()["vectors"], signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                await opened.pipeline.__aexit__()
        finally:
            os.kill(opened.stores.pids()["vectors"], signal.SIGCONT)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_writers_when_sixteen_write_for_one_user_then_the_order_of_acceptance_is_kept(
    tmp_path: Path, mode: str
) -> None:
    async with opened_at(tmp_path, mode=mode) as opened:
        await asyncio.gather(*(opened.say(*(f"w{w} n{n}" for n in range(12))) for w in range(16)))
        await until(lambda: len(opened.digest.said) == 192)
        subject = await opened.subject()
        await until(lambda: _drained(opened))
        said = await opened.vectors.said(subject, "s", 0, 1000)
        assert [t.seq for t in said] == list(range(1, 193))
        assert opened.digest.of("ann") == [t.content for t in said]


async def test_stale_epoch_when_a_change_meets_it_then_refused(opened: Opened) -> None:
    from tests.stores.redis_fixtures import erase

    subject = await opened.subject()

    async def put() -> Change:
        return Change(put=(record(subject, "one", "x"),))

    await opened.pipeline.change(subject, put)
    await erase(opened.redis, subject)
    with pytest.raises(Stale):
        await opened.pipeline.change(subject, put)


async def test_entries_when_new_ones_keep_coming_then_the_earlier_ones_end_meanwhile(opened: Opened) -> None:
    async def talk() -> None:
        n = 0
        while True:
            await opened.say(f"heron {n}")
            n += 1

    talking = asyncio.create_task(talk())
    try:
        await until(lambda: _known(opened, "heron 0"))
        assert not talking.done()
    finally:
        talking.cancel()


async def _known(opened: Opened, event_id: str) -> bool:
    state = await opened.redis.turns.state(await opened.subject(), event_id)
    return state is not None and state.state == "stored"
