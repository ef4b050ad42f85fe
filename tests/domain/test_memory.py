"""The memory service on the real embedded stores, without a model: idempotency, replay, order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from memoryos_server.domain.core import audit
from memoryos_server.domain.core.caller import PERMISSIONS, Caller
from memoryos_server.domain.core.conversation import NewTurn
from memoryos_server.domain.core.faults import BackendDown, Exists, Invalid, NotFound, Stale
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.memory.service import MemoryService
from memoryos_server.domain.ports import Change, Subject, Turn
from memoryos_server.domain.recall.analysis import Analysis
from memoryos_server.domain.recall.engine import RecallEngine
from memoryos_server.stores.child import ChildState
from memoryos_server.stores.embedded import EmbeddedStores
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.manifest import Expected
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import socket_url
from memoryos_server.stores.vectors_edge import EdgeVectors
from memoryos_server.tools.embed.identity import NoEmbedder
from memoryos_server.tools.words import Words

ANYBODY = Caller(tenant_id="default", permissions=PERMISSIONS, anonymous=True)
NEVER = 3600.0


@dataclass
class Opened:
    stores: EmbeddedStores
    redis: RedisStore
    vectors: EdgeVectors
    pipeline: Pipeline
    memory: MemoryService

    async def subject(self, user: str) -> Subject:
        return await self.redis.subjects.open("default", user)


async def open_memory(stack: AsyncExitStack, home: Path, flush_interval: float) -> Opened:
    stores = await stack.enter_async_context(EmbeddedStores(home / "data", {}))
    keys = MasterKeys("", home / "keys", home / "data")
    redis = await stack.enter_async_context(
        RedisStore.connect(socket_url(stores.redis_socket), keys, Expected(analysis="1"))
    )
    vectors = await stack.enter_async_context(EdgeVectors(stores.vectors_socket, redis.subjects))
    words = Words()
    analysis = Analysis(words.stem, words.fold)
    engine = RecallEngine(vectors, NoEmbedder("a test"), analysis)
    pipeline = Pipeline(
        redis.turns,
        redis.queue,
        vectors,
        engine,
        analysis.text,
        redis.heat,
        flush_interval=flush_interval,
        retry_interval=0.05,
    )
    vectors.on_reconnect(pipeline.restarted)
    await stack.enter_async_context(pipeline)
    memory = MemoryService(redis.subjects, redis.turns, vectors, pipeline, engine)
    return Opened(stores, redis, vectors, pipeline, memory)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:
        yield await open_memory(stack, tmp_path, NEVER)


async def found(opened: Opened, user: str, query: str) -> list[str]:
    return [hit.turn.content for hit in (await opened.memory.retrieve(ANYBODY, user, query)).episodes]


async def test_add_when_its_mark_is_a_day_gone_then_the_existing_episode_still_wins(opened: Opened) -> None:
    turn = NewTurn(role="user", content="the first heron", event_id="e1")
    first = await opened.memory.add(ANYBODY, "ann", turn)
    # What the passing of two days does: every mark expires.
    for key in await opened.redis.client.run("KEYS", "*:marks:*"):
        await opened.redis.client.run("DEL", key)
    again = await opened.memory.add(ANYBODY, "ann", turn)
    assert (again.memory_id, again.duplicate) == (first.memory_id, True)
    with pytest.raises(Exists) as raised:
        await opened.memory.add(ANYBODY, "ann", replace(turn, content="the second heron"))
    assert raised.value.reason == "event_id_conflict"
    assert await found(opened, "ann", "heron") == ["the first heron"]


async def test_entries_when_flushed_then_closed_and_not_before(opened: Opened, tmp_path: Path) -> None:
    for n in range(3):
        await opened.memory.add(ANYBODY, "ann", NewTurn(role="user", content=f"heron {n}"))
    assert await opened.redis.queue.depth() == 3
    await opened.pipeline.__aexit__()
    assert await opened.redis.queue.depth() == 0


async def test_vector_process_when_killed_before_a_flush_then_everything_is_indexed_again(opened: Opened) -> None:
    for n in range(5):
        await opened.memory.add(ANYBODY, "ann", NewTurn(role="user", content=f"heron {n}"))
    os.kill(opened.stores.pids()["vectors"], signal.SIGKILL)
    async with asyncio.timeout(10):
        while (answer := await opened.memory.retrieve(ANYBODY, "ann", "heron")).degraded:  # noqa: ASYNC110  # a caller sees no event
            await asyncio.sleep(0.002)
    # The first answer that is not marked as degraded is complete.
    assert len(answer.episodes) == 5
    assert await opened.redis.queue.depth() == 5


async def test_retrieve_when_the_vector_process_was_made_good_while_it_read_then_the_answer_is_complete(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened.memory.add(ANYBODY, "ann", NewTurn(role="user", content="a heron"))
    killed = opened.stores.pids()["vectors"]
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(10):
        while opened.stores.states()["vectors"] is not ChildState.UP or opened.stores.pids()["vectors"] == killed:  # noqa: ASYNC110  # a child gives no event
            await asyncio.sleep(0.01)
    recent = opened.redis.turns.recent

    async def slowly(subject: Subject, limit: int) -> list[Turn]:
        # Longer than it takes to notice the restart, which the search does, and to index again what it took.
        async with asyncio.timeout(10):
            while mark == opened.pipeline.level.mark() or opened.pipeline.level.behind:  # noqa: ASYNC110  # nor does a level
                await asyncio.sleep(0.001)
        return await recent(subject, limit)

    monkeypatch.setattr(opened.redis.turns, "recent", slowly)
    mark = opened.pipeline.level.mark()
    answer = await opened.memory.retrieve(ANYBODY, "ann", "heron")
    assert ([hit.turn.content for hit in answer.episodes], answer.degraded) == (["a heron"], False)


@pytest.mark.parametrize("finds", ["nothing to change", "nobody"])
async def test_change_when_what_it_read_may_be_missing_then_it_is_not_said_to_be_gone(
    opened: Opened, finds: str
) -> None:
    subject = await opened.subject("ann")
    missing = True

    async def make() -> Change | None:
        if missing:
            opened.pipeline.restarted()  # as a reading notices it
        if finds == "nobody":
            raise NotFound("There is no such memory", param="id")
        return None

    with pytest.raises(BackendDown):
        await opened.pipeline.change(subject, make)
    assert await opened.pipeline.level.caught_up()
    missing = False
    if finds == "nobody":
        with pytest.raises(NotFound):
            await opened.pipeline.change(subject, make)
    else:
        assert not await opened.pipeline.change(subject, make)


async def test_add_when_the_answer_to_the_acceptance_was_lost_then_the_repeat_makes_it_searchable(
    opened: Opened,
) -> None:
    turn = NewTurn(role="user", content="a lost heron", event_id="e1")
    kept = await opened.memory.add(ANYBODY, "ann", turn)
    # The state after such a loss: accepted, its entry open, and nothing of it in the index.
    await opened.vectors.delete_subject(await opened.subject("ann"))
    opened.pipeline._indexing.forget_all()
    again = await opened.memory.add(ANYBODY, "ann", turn)
    assert (again.memory_id, again.duplicate) == (kept.memory_id, True)
    assert await found(opened, "ann", "heron") == ["a lost heron"]


async def test_remember_when_one_of_two_conflicts_then_neither_is_kept(opened: Opened) -> None:
    await opened.memory.add(ANYBODY, "ann", NewTurn(role="user", content="a heron", event_id="e2"))
    pair = [
        NewTurn(role="user", content="another heron", event_id="e1"),
        NewTurn(role="assistant", content="a different heron", event_id="e2"),
    ]
    with pytest.raises(Exists):
        await opened.memory.remember("default", "ann", pair)
    assert await found(opened, "ann", "heron") == ["a heron"]


async def test_remember_when_who_said_it_was_erased_meanwhile_then_nobody_is_made_and_who_came_back_has_nothing(
    opened: Opened,
) -> None:
    turns = [NewTurn(role="user", content="a heron", event_id="e1")]
    ann = await opened.subject("ann")
    assert len(await opened.memory.remember("default", "ann", turns, subject_id=ann.id)) == 1
    await opened.redis.erasures.begin("default", "ann", "key_1", datetime.now(UTC))
    for _ in range(2):
        with pytest.raises(Stale):
            await opened.memory.remember("default", "ann", turns, subject_id=ann.id)
        assert await found(opened, "ann", "heron") == []
        if (await opened.redis.subjects.find("default", "ann")) is None:
            await opened.subject("ann")
    await opened.memory.remember("default", "ann", turns)
    assert await found(opened, "ann", "heron") == ["a heron"]


async def test_retrieve_when_as_of_is_given_then_only_what_was_said_by_then(opened: Opened) -> None:
    for year in (2020, 2024):
        said = NewTurn(role="user", content=f"heron of {year}", timestamp=datetime(year, 1, 1, tzinfo=UTC))
        await opened.memory.add(ANYBODY, "ann", said)
    answer = await opened.memory.retrieve(ANYBODY, "ann", "heron", as_of=datetime(2022, 1, 1, tzinfo=UTC))
    assert [hit.turn.content for hit in answer.episodes] == ["heron of 2020"]
    assert [turn.content for turn in answer.short_term] == ["heron of 2020"]


async def test_history_when_the_id_is_anothers_or_unknown_then_not_found(opened: Opened) -> None:
    kept = await opened.memory.add(ANYBODY, "ann", NewTurn(role="user", content="a heron"))
    assert [v.content for v in await opened.memory.history(ANYBODY, kept.memory_id)] == ["a heron"]
    for who in (
        ANYBODY._replace(named_user="ben"),
        ANYBODY._replace(tenant_id="other"),
        Caller(tenant_id="default", user_id="ben", permissions=frozenset({"memory"})),
    ):
        with pytest.raises(NotFound):
            await opened.memory.history(who, kept.memory_id)
    with pytest.raises(NotFound):
        await opened.memory.history(ANYBODY, "no-such-id")


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        (NewTurn(role="robot", content="x"), "role"),
        (NewTurn(role="user", content=" "), "content"),
        (NewTurn(role="user", content="x", event_id=""), "event_id"),
        (NewTurn(role="user", content="x", name="\n"), "name"),
        (NewTurn(role="user", content="x", session_id="\n"), "session_id"),
        (NewTurn(role="user", content="x", session_id="-"), "session_id"),
    ],
)
async def test_add_when_a_field_is_malformed_then_named_and_nothing_kept(
    opened: Opened, turn: NewTurn, param: str
) -> None:
    with pytest.raises(Invalid) as raised:
        await opened.memory.add(ANYBODY, "ann", turn)
    assert raised.value.param == param
    assert await opened.redis.subjects.find("default", "ann") is None


def drafted() -> audit.Draft:
    event = audit.AuditEvent(
        "id", datetime.now(UTC), "memory.add", "default", "ann", "", "AddMemory", "ok", "anonymous"
    )
    return audit.begin(event)


async def recorded(opened: Opened) -> list[str]:
    return [event.outcome async for event in opened.redis.audit.tail(None, 10)]


async def left_midway(opened: Opened, turn: NewTurn) -> None:
    """Adds a turn, and leaves while it is being written."""
    call = asyncio.create_task(opened.memory.add(ANYBODY, "ann", turn))
    async with asyncio.timeout(5):
        while not opened.pipeline._pending:  # noqa: ASYNC110  # the moment that is looked for has no event
            await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_audit_when_the_caller_leaves_midway_then_only_the_write_records_itself(opened: Opened) -> None:
    await opened.subject("ann")
    draft = drafted()
    await left_midway(opened, NewTurn(role="user", content="a heron"))
    await opened.pipeline.settle(await opened.subject("ann"), 5)
    assert draft.taken
    assert await recorded(opened) == ["ok"]


async def test_audit_when_the_caller_leaves_midway_and_it_was_a_repeat_then_it_is_recorded_all_the_same(
    opened: Opened,
) -> None:
    turn = NewTurn(role="user", content="a heron", event_id="e1")
    await opened.memory.add(ANYBODY, "ann", turn)
    await opened.vectors.delete_subject(await opened.subject("ann"))  # so that it is found by its mark
    draft = drafted()
    late: list[audit.AuditEvent] = []
    await left_midway(opened, turn)
    draft.ended, draft.late = True, late.append
    async with asyncio.timeout(5):
        while not late:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
    assert [one.outcome for one in late] == ["duplicate"]
    assert late[0].id != "id"


async def test_audit_when_an_event_is_repeated_then_the_draft_says_so(opened: Opened) -> None:
    turn = NewTurn(role="user", content="a heron", event_id="e1")
    await opened.memory.add(ANYBODY, "ann", turn)
    draft = drafted()
    await opened.memory.add(ANYBODY, "ann", turn)  # found in the index
    assert (draft.taken, draft.event and draft.event.outcome) == (False, "duplicate")
    await opened.vectors.delete_subject(await opened.subject("ann"))
    draft = drafted()
    await opened.memory.add(ANYBODY, "ann", turn)  # found by its mark
    assert (draft.taken, draft.event and draft.event.outcome) == (False, "duplicate")
    assert await recorded(opened) == []


@pytest.mark.parametrize("part", ["vectors", "valkey"])
async def test_calls_when_a_store_hangs_then_end_well_within_their_deadline(opened: Opened, part: Any) -> None:
    turn = NewTurn(role="user", content="a heron", event_id="e1")
    await opened.memory.add(ANYBODY, "ann", NewTurn(role="user", content="an egret"))
    os.kill(opened.stores.pids()[part], signal.SIGSTOP)
    try:
        for _ in range(2):  # the first finds out, the second knows
            async with asyncio.timeout(7):
                answer = await opened.memory.retrieve(ANYBODY, "ann", "heron")
            assert answer.degraded
        async with asyncio.timeout(2):
            if part == "vectors":
                assert (await opened.memory.add(ANYBODY, "ann", turn)).degraded
            else:
                with pytest.raises(BackendDown):
                    await opened.memory.add(ANYBODY, "ann", turn)
    finally:
        os.kill(opened.stores.pids()[part], signal.SIGCONT)
    async with asyncio.timeout(10):
        while "a heron" not in await found(opened, "ann", "heron"):
            with contextlib.suppress(BackendDown):
                await opened.memory.add(ANYBODY, "ann", turn)
            await asyncio.sleep(0.05)
