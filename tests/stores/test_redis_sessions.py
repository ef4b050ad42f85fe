from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.core.time import from_unix
from memoryos_server.domain.ports import Change, Session, Subject, Turn
from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import Connect, said

START = from_unix(1_770_000_000)


def at(turn: Turn, seconds: float) -> Turn:
    return replace(turn, timestamp=START + timedelta(seconds=seconds))


async def everything(store: RedisStore, subject: Subject, size: int) -> list[list[Session]]:
    pages, after = [], ""
    while True:
        page, after = await store.turns.sessions(subject, after, size)
        pages.append(page)
        if not after:
            return pages


async def test_sessions_when_turns_were_accepted_then_each_has_its_count_and_times(
    store: RedisStore, connect: Connect
) -> None:
    ann, bob = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "bob")
    first = [
        at(said(ann, "e1", session_id="旅行"), 10),
        at(said(ann, "e2", session_id=""), 5),
        at(said(ann, "e3", session_id="旅行"), 30),
    ]
    await store.turns.accept(ann, first)
    await store.turns.accept(ann, first)  # duplicates are not counted
    # Said before what was accepted before it, as an import of an old conversation is.
    await store.turns.accept(ann, [at(said(ann, "e4", session_id="旅行"), -90_000_000 * 20)])
    async with connect() as other:
        sessions, after = await other.turns.sessions(ann, "", 10)
        assert await other.turns.sessions(bob, "", 10) == ([], "")
    assert after == ""
    assert sessions == [
        Session("旅行", 3, START + timedelta(seconds=-90_000_000 * 20), START + timedelta(seconds=30)),
        Session("", 1, START + timedelta(seconds=5), START + timedelta(seconds=5)),
    ]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
async def test_sessions_when_paged_then_each_comes_once_last_active_first(store: RedisStore, size: int) -> None:
    ann = await store.subjects.open("acme", "ann")
    # Three at a time were active at the very same moment.
    turns = [at(said(ann, f"e{n}", session_id=f"s-{n}"), n // 3) for n in range(20)]
    await store.turns.accept(ann, turns)
    pages = await everything(store, ann, size)
    found = [session for page in pages for session in page]
    assert {session.id for session in found} == {f"s-{n}" for n in range(20)}
    assert len(found) == 20
    assert [session.last_at for session in found] == sorted((s.last_at for s in found), reverse=True)
    assert [len(page) for page in pages] == [size] * (20 // size) + ([20 % size] if 20 % size else [])


async def test_sessions_when_the_cursor_is_none_then_invalid(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    for bad in ("x", "%%%%", "QUJD", "二"):
        with pytest.raises(Invalid) as refused:
            await store.turns.sessions(ann, bad, 10)
        assert refused.value.param == "page_token"


async def test_sessions_when_all_turns_of_one_are_removed_then_it_is_gone(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    turns = [said(ann, f"e{n}", session_id="s-1" if n < 2 else "s-2") for n in range(4)]
    await store.turns.accept(ann, turns)
    events = {turn.id: (turn.event_id, turn.session_id) for turn in turns}
    for n in range(2):
        await store.queue.submit(ann, Change(remove=(turns[n].id,), events=events), None, revision=None)
    sessions, _ = await store.turns.sessions(ann, "", 10)
    assert [(session.id, session.turns) for session in sessions] == [("s-2", 2)]
    assert await store.client.run("ZCARD", (await store.subjects.scope(ann)).active) == 1


async def test_sessions_when_stored_then_no_name_of_one_can_be_read(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e1", session_id="trip to oslo")])
    scope = await store.subjects.scope(ann)
    raw = str(await store.client.run("HGETALL", scope.sessions))
    raw += str(await store.client.run("ZRANGE", scope.active, 0, -1))
    assert "trip" not in raw
