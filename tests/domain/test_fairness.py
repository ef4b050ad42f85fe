from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from memoryos_server.domain.core.ids import derived_uuid
from memoryos_server.domain.memory.fairness import Place, Slots, Waiting
from memoryos_server.domain.memory.model import Verdict
from memoryos_server.domain.ports import Subject
from tests.domain.pipeline_support import Diary, Opened, WordIndexer, opened_at, turn, until


def subject(tenant: str, user: str) -> Subject:
    return Subject(derived_uuid(tenant, user), tenant, user, 1)


def fill(waiting: Waiting, whose: Subject, *names: str) -> None:
    for name in names:
        waiting.add(Place(name, whose))


def ids(places: Sequence[Place]) -> list[str]:
    return [place.id for place in places]


def test_waiting_when_one_tenant_has_much_then_another_comes_second() -> None:
    waiting = Waiting()
    fill(waiting, subject("big", "x"), "x1", "x2", "x3", "x4")
    fill(waiting, subject("big", "y"), "y1", "y2")
    fill(waiting, subject("small", "z"), "z1")
    assert ids(waiting.take(7)) == ["x1", "z1", "y1", "x2", "y2", "x3", "x4"]
    assert len(waiting) == 0


def test_waiting_when_subjects_are_passed_over_then_they_keep_their_place() -> None:
    waiting = Waiting()
    x, y = subject("t", "x"), subject("t", "y")
    fill(waiting, x, "x1", "x2")
    fill(waiting, y, "y1")
    assert waiting.tenants({x.id, y.id}) == []
    assert ids(waiting.take(9, without={x.id})) == ["y1"]
    taken = waiting.take(1)
    waiting.put_back(taken)
    assert ids(waiting.of(x)) == ["x1", "x2"]
    assert ids(waiting.take(9)) == ["x1", "x2"]


def test_waiting_when_a_tenant_is_named_then_it_begins() -> None:
    waiting = Waiting()
    fill(waiting, subject("a", "x"), "a1", "a2")
    fill(waiting, subject("b", "y"), "b1")
    assert ids(waiting.take(1, first="b")) == ["b1"]


async def test_slots_when_one_tenant_asks_often_then_another_waits_for_one_turn() -> None:
    slots = Slots(1)
    order: list[str] = []

    async def work(*tenants: str) -> None:
        async with slots.turn(lambda: tenants, nothing_new) as tenant:
            order.append(tenant)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(work("big"))
        group.create_task(work("big", "small"))
    assert order[:2] == ["big", "small"]
    assert order.count("big") == 5


async def test_slots_when_who_asks_leaves_then_no_slot_is_lost() -> None:
    slots = Slots(1)
    async with slots.turn(lambda: ["a"], nothing_new):
        waits = asyncio.create_task(_enter(slots))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        given = asyncio.create_task(_enter(slots))
        await asyncio.sleep(0)
    given.cancel()  # the slot is given, and not yet taken
    await asyncio.gather(given, return_exceptions=True)
    async with asyncio.timeout(1), slots.turn(lambda: ["c"], nothing_new) as tenant:
        assert tenant == "c"


async def _enter(slots: Slots) -> None:
    async with slots.turn(lambda: ["b"], nothing_new):
        await asyncio.sleep(3600)


async def nothing_new() -> None:
    await asyncio.sleep(3600)


async def test_slots_when_somebody_comes_to_who_waits_already_then_it_counts_at_once() -> None:
    slots, came, order = Slots(1), asyncio.Event(), []
    late = ["big"]

    async def big() -> None:
        async with slots.turn(lambda: ["big"], nothing_new):
            order.append("big")
            await asyncio.sleep(0.01)

    async def joined() -> None:
        async def news() -> None:
            await came.wait()
            came.clear()
            late.append("small")

        async with slots.turn(lambda: late, news) as tenant:
            order.append(tenant)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(big())
        group.create_task(joined())
        await asyncio.sleep(0)
        came.set()
    assert order == ["big", "small", "big", "big"]


async def test_slots_when_nobody_is_left_who_wants_one_then_none_is_held() -> None:
    slots, who = Slots(1), ["a"]

    async def gone() -> None:
        who.clear()

    async with slots.turn(lambda: ["x"], nothing_new), slots.turn(lambda: who, gone) as tenant:
        assert tenant == ""
    async with asyncio.timeout(1), slots.turn(lambda: ["c"], nothing_new) as tenant:
        assert tenant == "c"


async def test_slots_when_the_news_fail_then_so_does_who_waits_and_its_place_is_free() -> None:
    slots = Slots(1)

    async def broken() -> None:
        raise ValueError("broken")

    async with slots.turn(lambda: ["x"], nothing_new):
        with pytest.raises(ValueError, match="broken"):
            async with slots.turn(lambda: ["a"], broken):
                pass
    async with asyncio.timeout(1), slots.turn(lambda: ["c"], nothing_new) as tenant:
        assert tenant == "c"


PACE = 0.004


@dataclass
class SlowDiary(Diary):
    """A diary that takes its time with every turn, and so lets a backlog stand."""

    async def digest(self, subject: Subject, turns: Sequence[object]) -> list[Verdict]:
        await asyncio.sleep(PACE * len(turns))
        return await super().digest(subject, turns)  # type: ignore[arg-type]


async def burst(opened: Opened, whose: Sequence[Subject], each: int) -> None:
    """Has much accepted at once, before any of it is worked on."""
    for number in range(each):
        await asyncio.gather(
            *(opened.pipeline.accept(one, [turn(one, f"{one.user_id} {number}")], None) for one in whose)
        )


async def delay(opened: Opened, digest: Diary, whose: Subject) -> tuple[int, float]:
    """How many turns of others were worked on between the acceptance of a turn and the end of its work, and seconds."""
    before, began = len(digest.said), time.monotonic()
    await opened.pipeline.accept(whose, [turn(whose, "one only")], None)
    await until(lambda: (whose.user_id, "one only") in digest.said, 60)
    return digest.said.index((whose.user_id, "one only")) - before, time.monotonic() - began


async def in_partition(opened: Opened, tenant: str, number: int) -> Subject:
    for attempt in range(20_000):
        found = await opened.redis.subjects.open(tenant, f"user-{attempt}")
        if found.partition == number:
            return found
    raise AssertionError("no such user")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("where", ["everywhere", "one partition", "one tenant"])
async def test_worker_when_somebody_has_a_backlog_then_another_hardly_waits(
    where: str, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    gate, digest = asyncio.Event(), SlowDiary()
    async with opened_at(
        tmp_path, mode="async", digest=digest, consolidation=None, indexer=WordIndexer(gate=gate), flush_interval=0.2
    ) as opened:
        if where == "everywhere":
            loud = [await opened.redis.subjects.open("loud", f"loud-{n}") for n in range(100)]
            await burst(opened, loud, 15)
            # Beside a loud one, in a partition that waits for its turn already.
            quiet = await in_partition(opened, "quiet", loud[-1].partition)
        else:
            loud = [await opened.redis.subjects.open("loud", "loud")]
            await burst(opened, loud, 1500)
            tenant = "loud" if where == "one tenant" else "quiet"
            quiet = await in_partition(opened, tenant, loud[0].partition)
        gate.set()
        await until(lambda: len(digest.said) > 100)
        turns, seconds = await delay(opened, digest, quiet)
        record_property("turns", turns)
        print(f"{where}: {turns} turns of others, {seconds:.2f} s")
        assert turns <= 200
        await until(lambda: len(digest.said) >= 1501, 60)
        for one in loud:
            assert digest.of(one.user_id) == [f"{one.user_id} {n}" for n in range(1500 // len(loud))]
