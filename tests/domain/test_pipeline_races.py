"""What happens to the pipeline between two of its steps: turns taken back meanwhile, entries that vanish, restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memoryos_server.domain.core.caller import PERMISSIONS, Caller
from memoryos_server.domain.memory.knowledge import Knowledge
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.memory.said import SaidService
from memoryos_server.domain.ports import Change, IndexedTurn, Turn
from memoryos_server.stores.vectors_edge import EdgeVectors
from tests.domain.pipeline_support import Diary, Opened, WordIndexer, opened_at, turn, until, words

ANN = Caller(tenant_id="default", permissions=PERMISSIONS, anonymous=True, named_user="ann")


def said_service(opened: Opened) -> SaidService:
    knowledge = Knowledge(opened.vectors, opened.indexer, str.casefold, words)
    return SaidService(opened.redis.subjects, opened.redis.turns, opened.vectors, opened.pipeline, knowledge)


async def drained(opened: Opened) -> bool:
    return not await opened.redis.queue.depth()


async def contents(opened: Opened) -> set[str]:
    subject = await opened.subject()
    return {turn.content for turn in await opened.vectors.said(subject, "s", 0, 1000)}


async def test_settle_when_a_removed_event_was_sent_again_then_nobody_waits(tmp_path: Path) -> None:
    async with opened_at(tmp_path) as opened:
        (made,) = await opened.say("heron")
        await until(lambda: drained(opened))
        await said_service(opened).delete(ANN, "ann", made.id)
        await until(lambda: drained(opened))
        (accepted,), _ = await opened.pipeline.accept(await opened.subject(), [made], None)
        assert accepted.duplicate
        assert await contents(opened) == set()
        began = time.monotonic()
        await opened.pipeline.settle(await opened.subject(), 5)
        assert time.monotonic() - began < 2


async def test_settle_when_an_entry_was_removed_before_it_was_worked_on_then_nobody_waits(tmp_path: Path) -> None:
    async with opened_at(tmp_path, mode="async") as opened:
        opened.indexer.gate = asyncio.Event()
        await opened.say("first")
        await asyncio.sleep(0.2)  # the worker stands at the gate with it
        second = turn(await opened.subject(), "second")
        await opened.pipeline.accept(await opened.subject(), [second], None)

        async def make() -> Change:
            return Change(remove=(second.id,), events={second.id: ("second", "s")})

        change = asyncio.create_task(opened.pipeline.change(await opened.subject(), make, reads=False))
        await until(lambda: gone(opened, "second"))
        opened.indexer.gate.set()
        await change
        await until(lambda: drained(opened))
        began = time.monotonic()
        await opened.pipeline.settle(await opened.subject(), 5)
        assert time.monotonic() - began < 2
        assert await contents(opened) == {"first"}


async def gone(opened: Opened, event_id: str) -> bool:
    return (await opened.state(event_id)).reason == "deleted"


@dataclass
class SlowWorker(WordIndexer):
    """The worker waits at the gate, whoever else indexes does not."""

    under_way: int = 0

    async def index(self, turns: Sequence[Turn]) -> list[IndexedTurn]:
        self.under_way += 1
        try:
            task = asyncio.current_task()
            if self.gate and task and task.get_name().startswith("partition"):
                await self.gate.wait()
            await asyncio.sleep(0.2)
            return await WordIndexer().index(turns)
        finally:
            self.under_way -= 1


async def test_removed_turn_when_it_is_being_indexed_again_then_it_does_not_come_back(tmp_path: Path) -> None:
    indexer = SlowWorker()
    async with opened_at(tmp_path, indexer=indexer, flush_interval=2.0) as opened:
        (made,) = await opened.say("heron")
        await until(lambda: opened.digest.said)
        indexer.gate = asyncio.Event()
        opened.pipeline.restarted()  # every open entry is written again: at once, and by the worker
        await until(lambda: indexer.under_way == 2)
        await until(lambda: not opened.pipeline.level.behind)
        await said_service(opened).delete(ANN, "ann", made.id)
        assert await contents(opened) == set()
        indexer.gate.set()
        await until(lambda: not indexer.under_way)
        await until(lambda: drained(opened))
        assert await contents(opened) == set()


async def test_removed_turn_when_its_mark_expired_and_it_is_said_again_then_it_is_kept(tmp_path: Path) -> None:
    async with opened_at(tmp_path, mode="async") as opened:
        subject = await opened.subject()
        (made,) = await opened.say("heron")
        await until(lambda: drained(opened))
        await said_service(opened).delete(ANN, "ann", made.id)
        await until(lambda: drained(opened))
        opened.redis.turns._now = lambda: time.time() + 3 * 86_400
        (accepted,), _ = await opened.pipeline.accept(subject, [made], None)
        assert not accepted.duplicate
        await until(lambda: drained(opened))
        assert await contents(opened) == {"heron"}
        assert [content for _, content in opened.digest.said] == ["heron", "heron"]


async def test_deletion_when_turns_are_not_indexed_yet_then_they_go_all_the_same(tmp_path: Path) -> None:
    async with opened_at(tmp_path, mode="async") as opened:
        said = said_service(opened)
        opened.indexer.gate = asyncio.Event()
        made = await opened.say("one", "two", "three")
        one = asyncio.create_task(said.delete(ANN, "ann", made[0].id))
        await asyncio.sleep(0.3)
        opened.indexer.gate.set()
        assert (await one).turns == 1
        opened.indexer.gate.clear()
        await opened.say("four")
        session = asyncio.create_task(said.delete_session(ANN, "ann", "s"))
        await asyncio.sleep(0.3)
        opened.indexer.gate.set()
        assert (await session).turns == 3
        await until(lambda: drained(opened))
        assert await contents(opened) == set()
        assert await opened.redis.turns.recent(await opened.subject(), 20) == []


async def test_change_when_facts_were_learnt_while_it_was_decided_then_decided_again(tmp_path: Path) -> None:
    async with opened_at(tmp_path) as opened:
        subject = await opened.subject()
        (old,) = await opened.say("old")
        await until(lambda: drained(opened))
        decided = 0

        async def make() -> Change:
            nonlocal decided
            decided += 1
            if decided == 1:
                await opened.say("new")  # digested from beginning to end while the change is being decided
                await until(lambda: opened.digest.of("ann") == ["old", "new"])
                await until(lambda: drained(opened))
            return Change(remove=(old.id,), events={old.id: ("old", "s")})

        await opened.pipeline.change(subject, make)
        assert decided == 2


async def test_entries_when_the_server_starts_often_without_its_engine_then_none_is_given_up(tmp_path: Path) -> None:
    async with opened_at(tmp_path, flush_interval=3600.0) as opened:
        opened.pipeline._STOP_SECONDS = 0.1
        await opened.say("heron")
        async with EdgeVectors(tmp_path / "nowhere", opened.redis.subjects) as away:
            for _ in range(7):
                parts = (opened.redis.turns, opened.redis.queue, away, WordIndexer(), words, opened.redis.heat)
                again = Pipeline(*parts, digest=Diary(), flush_interval=0.05, retry_interval=0.05)
                again._STOP_SECONDS = 0.1
                async with again:
                    await asyncio.sleep(0.1)
        state = await opened.state("heron")
        assert (state.state, state.attempts) == ("accepted", 0)
