"""What was said, read and taken back, on the real embedded stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from memoryos_server.domain.core import audit
from memoryos_server.domain.core.caller import PERMISSIONS, Caller
from memoryos_server.domain.core.faults import Invalid, NotFound
from memoryos_server.domain.memory.extraction.model import Fact
from memoryos_server.domain.memory.facts import sightings
from memoryos_server.domain.memory.knowledge import Knowledge
from memoryos_server.domain.memory.said import SaidService
from memoryos_server.domain.ports import Change, Record, Subject, Turn
from tests.domain.pipeline_support import THEN, Opened, opened_at, record, until, words

ANN = Caller(tenant_id="default", permissions=PERMISSIONS, anonymous=True, named_user="ann")
ANYBODY = ANN._replace(named_user=None)


@dataclass
class Joined:
    """A rebuild that joins what is left."""

    asked: list[list[str]] = field(default_factory=list)

    async def rebuild(self, subject: Subject, record: Record, turns: Sequence[Turn]) -> Record:
        self.asked.append([turn.content for turn in turns])
        text = " / ".join(sorted(turn.content for turn in turns))
        return replace(record, text=text, sources=tuple(turn.id for turn in turns), history=({"summary": "old"},))


@dataclass
class Room:
    opened: Opened
    said: SaidService
    rebuild: Joined
    knowledge: Knowledge
    forgotten: list[tuple[str, str]]


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with opened_at(tmp_path) as opened:
        rebuild, forgotten = Joined(), list[tuple[str, str]]()
        knowledge = Knowledge(opened.vectors, opened.indexer, str.casefold, words)
        said = SaidService(
            opened.redis.subjects,
            opened.redis.turns,
            opened.vectors,
            opened.pipeline,
            knowledge,
            rebuild,
            lambda tenant, user: forgotten.append((tenant, user)),
        )
        yield Room(opened, said, rebuild, knowledge, forgotten)


async def put(room: Room, *records: Record) -> None:
    async def make() -> Change:
        return Change(put=records)

    await room.opened.pipeline.change(await room.opened.subject(), make)


async def test_sessions_when_listed_then_last_active_first_with_their_turns_in_order(room: Room) -> None:
    await room.opened.say("a", "b", session="one")
    await room.opened.say("c", session="two")
    await room.opened.say("d", session="")
    await room.opened.say("e", session="one")
    listed, token = await room.said.sessions(ANN, "")
    assert {(s.id, s.turns) for s in listed} == {("one", 3), ("two", 1), ("", 1)}
    assert token == ""
    turns, token = await room.said.session(ANN, "", "one")
    assert ([t.content for t in turns], token) == (["a", "b", "e"], "")
    assert [t.content for t in (await room.said.session(ANN, "", "-"))[0]] == ["d"]


async def test_session_when_read_in_pages_then_every_turn_once(room: Room) -> None:
    contents = [f"turn {n}" for n in range(25)]
    await room.opened.say(*contents)
    found: list[str] = []
    token = ""
    while True:
        turns, token = await room.said.session(ANN, "", "s", page_size=10, page_token=token)
        found += [turn.content for turn in turns]
        if not token:
            break
    assert found == contents


async def test_reads_when_the_user_is_unknown_or_input_bad_then_said_so(room: Room) -> None:
    assert await room.said.sessions(ANN, "") == ([], "")
    with pytest.raises(NotFound):
        await room.said.session(ANN, "", "s")
    with pytest.raises(NotFound):
        await room.said.event(ANN, "", "e")
    with pytest.raises(NotFound):
        await room.said.delete_session(ANN, "", "s")
    await room.opened.say("a")
    for page_size, token in ((0, ""), (None, "x")):
        with pytest.raises(Invalid):
            await room.said.session(ANN, "", "s", page_size=page_size, page_token=token)


async def test_delete_when_a_turn_has_derived_memories_then_they_go_or_are_made_anew(room: Room) -> None:
    secret, harmless = await room.opened.say("my secret", "a heron")
    subject = await room.opened.subject()
    both = record(subject, "both", "my secret / a heron", kind="segment", type="qa", sources=(secret.id, harmless.id))
    both = replace(both, version=3, history=({"summary": "my secret"},))
    alone = record(subject, "alone", "my secret", kind="segment", type="qa", sources=(secret.id,))
    other = record(subject, "other", "a heron", kind="segment", type="qa", sources=(harmless.id,))
    await put(room, both, alone, other)
    deleted = await room.said.delete(ANN, "", secret.id)
    assert (deleted.turns, deleted.derived, deleted.degraded) == (1, 1, False)
    left = {r.id: r for r in await room.opened.vectors.records(subject, [both.id, alone.id, other.id], history=True)}
    assert alone.id not in left
    assert (left[both.id].text, left[both.id].version, left[both.id].history) == ("a heron", 4, ())
    assert left[both.id].sources == (harmless.id,)
    assert left[other.id] == other
    assert await room.opened.vectors.get(subject, [secret.id]) == []
    assert [t.content for t in await room.opened.redis.turns.recent(subject, 20)] == ["a heron"]
    assert room.forgotten == [("default", "ann")]
    state = await room.said.event(ANN, "", "my secret")
    assert (state.state, state.reason) == ("rejected", "deleted")
    with pytest.raises(NotFound):
        await room.said.delete(ANN, "", secret.id)


async def test_delete_when_a_turn_stated_or_ended_beliefs_then_those_follow_from_the_others(room: Room) -> None:
    paris, again, berlin, tea = await room.opened.say("in Paris", "still in Paris", "now in Berlin", "likes tea")
    subject = await room.opened.subject()
    said = [(paris, "lives_in", "Paris"), (again, "lives_in", "Paris"), (berlin, "lives_in", "Berlin")]
    said.append((tea, "likes", "tea"))
    for hours, (turn, predicate, value) in enumerate(said):
        stated = Fact("user", predicate, value, f"{predicate} {value}", 0.9)
        timed = replace(turn, timestamp=turn.timestamp + timedelta(hours=hours))
        await room.knowledge.learn(subject, sightings(timed, [stated], THEN))

    async def believed() -> list[tuple[str, int]]:
        return sorted((one.value, len(one.sources)) for one in await room.knowledge.current(subject))

    assert await believed() == [("Berlin", 1), ("tea", 1)]
    await room.said.delete(ANN, "", berlin.id)
    room.knowledge.forget(subject)
    assert await believed() == [("Paris", 2), ("tea", 1)]
    await room.said.delete(ANN, "", paris.id)
    room.knowledge.forget(subject)
    assert await believed() == [("Paris", 1), ("tea", 1)]
    await room.said.delete_session(ANN, "", "s")
    room.knowledge.forget(subject)
    assert await believed() == []


async def test_delete_when_it_is_a_record_then_only_that_goes(room: Room) -> None:
    (heron,) = await room.opened.say("a heron")
    subject = await room.opened.subject()
    made = record(subject, "one", "keeps herons", sources=(heron.id,))
    await put(room, made)
    await room.said.delete(ANN, "", made.id)
    assert await room.opened.vectors.records(subject, [made.id]) == []
    assert len(await room.opened.vectors.get(subject, [heron.id])) == 1


async def test_delete_when_the_memory_is_anothers_then_not_found(room: Room) -> None:
    (heron,) = await room.opened.say("a heron")
    await room.opened.subject("ben")
    for who, user in ((ANN, "ben"), (ANN._replace(named_user="ben"), ""), (ANYBODY._replace(tenant_id="other"), "")):
        with pytest.raises((NotFound, Invalid)):
            await room.said.delete(who, user, heron.id)
    assert (await room.said.delete(ANYBODY, "", heron.id)).turns == 1  # with auth off an id is enough within the tenant


async def test_delete_session_when_it_is_long_then_all_of_it_and_nothing_else_goes(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memoryos_server.domain.memory.said._TURNS_PER_CHANGE", 10)
    said = await room.opened.say(*(f"turn {n}" for n in range(25)), session="one")
    await room.opened.say("stays", session="two")
    subject = await room.opened.subject()
    segment = record(subject, "s", "all of it", kind="segment", type="qa", sources=tuple(t.id for t in said))
    await put(room, segment)
    deleted = await room.said.delete_session(ANN, "", "one")
    assert (deleted.turns, deleted.derived) == (25, 1)
    assert await room.opened.vectors.records(subject, [segment.id]) == []
    assert [(s.id, s.turns) for s in (await room.said.sessions(ANN, ""))[0]] == [("two", 1)]
    assert [t.content for t in (await room.said.session(ANN, "", "two"))[0]] == ["stays"]


async def test_delete_when_the_call_is_audited_then_recorded_in_the_same_write(room: Room) -> None:
    (heron,) = await room.opened.say("a heron")
    draft = audit.begin(
        audit.AuditEvent("id", THEN, "memory.delete", "default", "ann", "", "DeleteMemory", "ok", "anonymous")
    )
    await room.said.delete(ANN, "", heron.id)
    assert draft.taken
    events = [event.event_type async for event in room.opened.redis.audit.tail(None, 10)]
    assert events == ["memory.delete"]


async def test_event_when_its_mark_has_expired_then_shown_as_stored(room: Room) -> None:
    await room.opened.say("a heron")
    await until(lambda: _stored(room))
    for key in await room.opened.redis.client.run("KEYS", "*:marks:*"):
        await room.opened.redis.client.run("DEL", key)
    assert (await room.said.event(ANN, "", "a heron")).state == "stored"


async def _stored(room: Room) -> bool:
    return (await room.said.event(ANN, "", "a heron")).state == "stored"
