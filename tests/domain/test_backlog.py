"""How much accepted work may wait, on the real stores."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from memoryos_server.domain.core.faults import BackendDown, Exists, TooMany
from memoryos_server.domain.memory.backlog import RETRY_SECONDS, Backlog
from memoryos_server.domain.memory.counts import Uncounted
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.ports import Change, Subject
from tests.domain.pipeline_support import Opened, WordIndexer, open_pipeline, record, turn, until, words


class Refusals(Uncounted):
    def __init__(self) -> None:
        self.limits: list[str] = []

    def refused(self, limit: str) -> None:
        self.limits.append(limit)


@asynccontextmanager
async def bounded(home: Path, gate: asyncio.Event, counts: Refusals, **limits: int) -> AsyncIterator[Opened]:
    """A pipeline that is bounded, and whose worker waits at the gate."""
    async with AsyncExitStack() as stack:
        opened = await open_pipeline(stack, home, mode="async", consolidation=None)
        await opened.pipeline.__aexit__()
        queue = opened.redis.queue
        backlog = Backlog(queue, counts=counts, look_seconds=0.05, tenants_seconds=0.05, **limits)
        indexer = WordIndexer(gate=gate)
        opened.pipeline = await stack.enter_async_context(
            Pipeline(
                *(opened.redis.turns, queue, opened.vectors, indexer, words, opened.redis.heat),
                **{"mode": "async", "flush_interval": 0.05, "digest": opened.digest, "backlog": backlog},
            )
        )
        stack.callback(gate.set)
        yield opened


async def fill(opened: Opened, subject: Subject, count: int, first: int = 0) -> tuple[list[str], TooMany | None]:
    """Has turns accepted one by one, numbered from the first; those that were, and the first refusal."""
    kept = []
    for number in range(first, first + count):
        try:
            await opened.pipeline.accept(subject, [turn(subject, f"{subject.user_id} {number}")], None)
        except TooMany as fault:
            return kept, fault
        kept.append(f"{subject.user_id} {number}")
    return kept, None


async def test_accept_when_too_much_waits_then_refused_and_nothing_accepted_is_lost(tmp_path: Path) -> None:
    gate, counts = asyncio.Event(), Refusals()
    async with bounded(tmp_path, gate, counts, most=20) as opened:
        ann = await opened.subject("ann")
        kept, fault = await fill(opened, ann, 40)
        assert fault is not None
        assert 20 <= len(kept) <= 22  # what is just being written may be missed by a look
        assert (fault.retry_after, fault.metadata["limit"]) == (RETRY_SECONDS, "backlog")
        assert counts.limits == ["backlog"]
        assert await opened.redis.turns.state(ann, f"ann {len(kept)}") is None  # the refused one left no trace
        gate.set()
        await until(lambda: len(opened.digest.said) == len(kept))
        assert opened.digest.of("ann") == kept

        async def room() -> bool:
            return (await fill(opened, await opened.subject("ben"), 1))[1] is None

        await until(room)


async def test_accept_when_there_is_no_room_then_a_repeat_is_told_that_it_was_kept(tmp_path: Path) -> None:
    gate, counts = asyncio.Event(), Refusals()
    async with bounded(tmp_path, gate, counts, most=5, most_of_tenant=5) as opened:
        ann = await opened.subject("ann")
        kept, fault = await fill(opened, ann, 40)
        assert fault is not None
        refused = len(counts.limits)
        again = [turn(ann, content) for content in kept]
        for part in ([again[0]], again):
            accepted, _ = await opened.pipeline.accept(ann, part, None)
            assert [(a.memory_id, a.duplicate) for a in accepted] == [(one.id, True) for one in part]
        assert len(counts.limits) == refused
        with pytest.raises(TooMany):
            await opened.pipeline.accept(ann, [again[0], turn(ann, "new")], None)  # all or nothing
        with pytest.raises(Exists):
            await opened.pipeline.accept(ann, [replace(again[0], content="other")], None)
        assert len(counts.limits) == refused + 1
        assert await opened.redis.queue.depth() == len(kept)
        gate.set()
        await until(lambda: len(opened.digest.said) == len(kept))
        assert opened.digest.of("ann") == kept


async def test_accept_when_one_tenant_has_its_share_then_others_are_let_in(tmp_path: Path) -> None:
    gate, counts = asyncio.Event(), Refusals()
    async with bounded(tmp_path, gate, counts, most_of_tenant=10) as opened:
        loud = [await opened.redis.subjects.open("loud", f"user-{n}") for n in range(3)]
        for subject in loud:
            kept, fault = await fill(opened, subject, 4)  # counted by tenant only once all of them are many
        assert (len(kept), fault) == (4, None)
        await asyncio.sleep(0.3)
        assert await opened.redis.queue.open_by_tenant() == {"loud": 12}
        _, fault = await fill(opened, loud[0], 1, first=4)
        assert fault is not None
        assert fault.metadata["limit"] == "tenant_backlog"
        quiet = await opened.redis.subjects.open("quiet", "ann")
        assert (await fill(opened, quiet, 5))[1] is None


async def test_change_when_too_much_waits_then_only_removals_are_accepted(tmp_path: Path) -> None:
    gate, counts = asyncio.Event(), Refusals()
    gate.set()
    async with bounded(tmp_path, gate, counts, most=3) as opened:
        ann = await opened.subject("ann")
        made = record(ann, "tea", "Ann drinks tea.")

        async def put() -> Change:
            return Change(put=[made])

        async def remove() -> Change:
            return Change(remove=[made.id])

        await opened.pipeline.change(ann, put)
        gate.clear()
        _, fault = await fill(opened, ann, 10)
        assert fault is not None
        with pytest.raises(TooMany):
            await opened.pipeline.change(ann, put)
        await opened.pipeline.change(ann, remove)


async def test_count_when_a_partition_has_more_than_a_piece_then_all_are_counted(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with bounded(tmp_path, gate, Refusals()) as opened:
        ann = await opened.subject("ann")
        await opened.pipeline.accept(ann, [turn(ann, f"many {n}") for n in range(1001)], None)
        ben = await opened.redis.subjects.open("other", "ben")
        await opened.pipeline.accept(ben, [turn(ben, "one")], None)
        assert await opened.redis.queue.open_by_tenant() == {"default": 1001, "other": 1}
        gate.set()
        await until(lambda: len(opened.digest.said) == 1002, 40)


async def test_accept_when_the_ledger_is_away_for_long_then_that_is_said_and_not_that_there_is_no_room(
    tmp_path: Path,
) -> None:
    gate, counts = asyncio.Event(), Refusals()
    async with bounded(tmp_path, gate, counts, most=20, most_of_tenant=20) as opened:
        ann = await opened.subject("ann")
        made = record(ann, "tea", "Ann drinks tea.")

        async def put() -> Change:
            return Change(put=[made])

        pid = opened.stores.pids()["valkey"]
        os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(30):
                with pytest.raises(BackendDown):
                    await opened.pipeline.accept(ann, [turn(ann, f"{number}")], None)
                with pytest.raises(BackendDown):
                    await opened.pipeline.change(ann, put, reads=False)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert counts.limits == []


async def test_accept_when_a_turn_is_sent_again_and_again_then_it_takes_no_room(tmp_path: Path) -> None:
    gate, counts = asyncio.Event(), Refusals()
    async with bounded(tmp_path, gate, counts, most=20) as opened:
        ann = await opened.subject("ann")
        for _ in range(40):
            await opened.pipeline.accept(ann, [turn(ann, "the same")], None)
        assert counts.limits == []
