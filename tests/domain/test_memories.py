"""Typed memories on the real embedded stores."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memoryos_server.domain.core import audit
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import BackendDown, Exists, Invalid, NotFound
from memoryos_server.domain.ports import Change
from tests.domain.memories_support import ANYBODY, Opened, open_memories

RULE = "使用者偏好繁體中文回覆,技術術語保留英文"
BEN = ANYBODY._replace(named_user="ben")


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    async with open_memories(tmp_path) as made:
        yield made


async def test_create_when_kept_then_read_back_whole(opened: Opened) -> None:
    kept = await opened.memories.create(ANYBODY, RULE, "rule", importance=0.9)
    assert not kept.degraded
    memory = kept.memory
    assert (memory.content, memory.memory_type, memory.importance, memory.version) == (RULE, "rule", 0.9, 1)
    assert memory.created_at == memory.updated_at
    assert (await opened.memories.get(ANYBODY, memory.id)).memory == memory
    assert await opened.contents() == [RULE]


async def test_create_when_it_was_known_before_then_listed_by_that_time(opened: Opened) -> None:
    await opened.create("now")
    known = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    kept = await opened.memories.create(ANYBODY, "long ago", "fact", created_at=known)
    assert not kept.duplicate
    memory = (await opened.memories.get(ANYBODY, kept.memory.id)).memory
    assert (memory.created_at, memory.updated_at) == (known, known)
    assert await opened.contents() == ["now", "long ago"]
    changed = (await opened.memories.update(ANYBODY, memory.id, content="longer ago")).memory
    assert changed.created_at == known < changed.updated_at


async def test_create_when_importance_is_left_out_then_a_half_and_zero_stays_zero(opened: Opened) -> None:
    assert (await opened.memories.create(ANYBODY, "a", "fact")).memory.importance == 0.5
    zero = (await opened.memories.create(ANYBODY, "b", "fact", importance=0)).memory
    assert (await opened.memories.get(ANYBODY, zero.id)).memory.importance == 0


async def test_create_when_an_event_is_repeated_then_one_memory_as_it_is_now(opened: Opened) -> None:
    first = await opened.create("tea", event_id="e1")
    assert await opened.create("tea", event_id="e1") == first
    await opened.memories.update(ANYBODY, first, content="green tea")
    repeated = await opened.memories.create(ANYBODY, "tea", "fact", event_id="e1")
    again = repeated.memory
    assert repeated.duplicate
    assert (again.id, again.content, again.version) == (first, "green tea", 2)
    assert await opened.contents() == ["green tea"]
    for content, kind in (("coffee", "fact"), ("tea", "rule")):
        with pytest.raises(Exists) as raised:
            await opened.create(content, kind, event_id="e1")
        assert raised.value.reason == "event_id_conflict"
    assert await opened.create("coffee", event_id="e1", who=BEN) != first


async def test_create_when_what_the_event_id_made_was_deleted_then_a_repeat_does_not_bring_it_back(
    opened: Opened,
) -> None:
    one = await opened.create("tea", event_id="e1")
    await opened.memories.delete(ANYBODY, one)
    with pytest.raises(Exists) as raised:
        await opened.create("tea", event_id="e1")
    assert (raised.value.reason, raised.value.param) == ("event_id_conflict", "event_id")
    assert await opened.contents() == []
    two = await opened.create("tea", event_id="e2")
    await opened.create("coffee", event_id="e3")
    await opened.memories.delete_all(ANYBODY, "fact")
    with pytest.raises(Exists):
        await opened.create("tea", event_id="e2")
    assert await opened.create("tea") not in (one, two)  # said anew, not again


async def test_page_when_there_are_many_then_newest_first_without_gaps_or_repeats(opened: Opened) -> None:
    for n in range(25):
        await opened.create(f"fact {n}", "fact" if n % 5 else "rule")
    first = await opened.memories.page(ANYBODY)
    assert ([m.content for m in first.memories], first.total, first.page, first.page_size) == (
        [f"fact {n}" for n in range(24, 4, -1)],
        25,
        1,
        20,
    )
    assert await opened.contents(page=2) == [f"fact {n}" for n in range(4, -1, -1)]
    assert await opened.contents(memory_type="rule", page_size=3, page=2) == ["fact 5", "fact 0"]
    past = await opened.memories.page(ANYBODY, page=4_000_000_000)
    assert (past.memories, past.total) == ([], 25)
    assert (await opened.memories.page(ANYBODY, page_size=1000)).page_size == 100


async def test_update_when_changed_then_new_version_with_history_and_only_it_is_found(opened: Opened) -> None:
    memory_id = await opened.create("drinks coffee", importance=0.2)
    before = (await opened.memories.get(ANYBODY, memory_id)).memory
    now = (await opened.memories.update(ANYBODY, memory_id, content="drinks matcha")).memory
    assert (now.id, now.content, now.importance, now.version) == (memory_id, "drinks matcha", 0.2, 2)
    assert now.created_at == before.created_at
    assert now.updated_at > before.updated_at
    assert await opened.found("coffee") == []
    assert await opened.found("matcha") == ["drinks matcha"]
    await opened.memories.update(ANYBODY, memory_id, importance=0.7)
    subject = await opened.redis.subjects.open("default", "default_user")
    (record,) = await opened.vectors.records(subject, [memory_id], history=True)
    assert [(h["version"], h["content"], h["importance"]) for h in record.history] == [
        (2, "drinks matcha", 0.2),
        (1, "drinks coffee", 0.2),
    ]
    assert datetime.fromisoformat(record.history[1]["changed_at"]) == before.updated_at


async def test_update_when_nothing_is_different_then_no_new_version(opened: Opened) -> None:
    memory_id = await opened.create("tea", importance=0.3)
    assert (await opened.memories.update(ANYBODY, memory_id, content="tea", importance=0.3)).memory.version == 1


async def test_update_when_many_at_once_then_none_is_lost(opened: Opened) -> None:
    memory_id = await opened.create("start")
    await asyncio.gather(*(opened.memories.update(ANYBODY, memory_id, content=f"text {n}") for n in range(8)))
    subject = await opened.redis.subjects.open("default", "default_user")
    (record,) = await opened.vectors.records(subject, [memory_id], history=True)
    assert record.version == 9
    assert {record.text, *(h["content"] for h in record.history)} == {"start", *(f"text {n}" for n in range(8))}


async def test_delete_when_done_then_gone_everywhere_and_again_is_unknown(opened: Opened) -> None:
    memory_id = await opened.create("a heron")
    assert opened.forgotten == []
    assert await opened.memories.delete(ANYBODY, memory_id) is False
    assert opened.forgotten == [("default", "default_user")]
    assert await opened.contents() == await opened.found("heron") == []
    for call in (opened.memories.get, opened.memories.delete):
        with pytest.raises(NotFound):
            await call(ANYBODY, memory_id)


async def test_by_id_when_it_is_anothers_or_no_memory_then_not_found(opened: Opened) -> None:
    memory_id = await opened.create("a heron")
    strangers = (
        BEN,
        ANYBODY._replace(tenant_id="other"),
        Caller(tenant_id="default", user_id="ben", permissions=frozenset({"memory"})),
    )
    await opened.create("bens own", who=BEN)
    for who in strangers:
        for call in (opened.memories.get, opened.memories.delete):
            with pytest.raises(NotFound):
                await call(who, memory_id)
        with pytest.raises(NotFound):
            await opened.memories.update(who, memory_id, importance=1)
        assert "a heron" not in await opened.contents(who) + await opened.found("heron", who)
    assert await opened.contents() == ["a heron"]
    for unknown in ("no-such-id", "0198a0e0-0000-7000-8000-000000000000"):
        with pytest.raises(NotFound) as raised:
            await opened.memories.get(ANYBODY, unknown)
        assert raised.value.param == "id"


async def test_delete_all_when_more_than_one_change_holds_then_all_of_the_type_and_no_other(opened: Opened) -> None:
    extracting = opened.extracting()
    # Two extractions, because a text is limited.
    for half in range(2):
        text = "\n".join(f"fact {half} {n}" for n in range(750))
        assert len((await extracting.extract(ANYBODY, text=text)).memories) == 750
    await opened.create("stays", "rule")
    await opened.create("stays, too", who=BEN)
    assert await opened.memories.delete_all(ANYBODY, "fact") == (1500, False)
    assert await opened.contents() == ["stays"]
    assert await opened.contents(BEN) == ["stays, too"]
    assert await opened.memories.delete_all(ANYBODY, "fact") == (0, False)
    with pytest.raises(Invalid):
        await opened.memories.delete_all(ANYBODY, "all")


async def test_search_when_no_model_is_there_then_words_find_in_either_script(opened: Opened) -> None:
    await opened.create(RULE, "rule", importance=0.9)
    await opened.create("養了一隻叫豆豆的狗")
    await opened.create("The deploy runs on Fridays", "context")
    for query in ("使用者語言偏好", "使用者语言偏好"):
        (best, *_) = (await opened.memories.search(ANYBODY, query, min_similarity=0.3, memory_type="rule")).found
        assert best.memory.content == RULE
        assert 0.3 <= best.score <= 1
    assert (await opened.found("狗叫什么"))[0] == "養了一隻叫豆豆的狗"
    assert await opened.found("When does the deploy run?") == ["The deploy runs on Fridays"]
    assert await opened.found("deploy", memory_type="rule") == []
    assert await opened.found("zebra") == []


async def test_search_when_ranked_then_best_first_within_bounds_and_counted(opened: Opened) -> None:
    for text in ("green tea", "green tea with jasmine in the morning", "a green bicycle", "coffee"):
        await opened.create(text)
    found = (await opened.memories.search(ANYBODY, "green tea")).found
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)
    assert {one.memory.content for one in found[:2]} == {"green tea", "green tea with jasmine in the morning"}
    assert len(await opened.found("green tea", top_k=1)) == 1
    floor = found[1].score
    close = (await opened.memories.search(ANYBODY, "green tea", min_similarity=floor)).found
    assert [one.score for one in close] == [score for score in scores if score >= floor]
    assert opened.touched.ids[: len(found)] == [one.memory.id for one in found]


async def test_search_when_the_question_is_as_long_as_may_be_then_answered_in_time(opened: Opened) -> None:
    for n in range(60):
        await opened.create(f"heron {n}")
    async with asyncio.timeout(20):
        assert len(await opened.found("heron " + "words and more " * 6_600, top_k=100)) == 60


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda m: m.create(ANYBODY, " ", "fact"), "content"),
        (lambda m: m.create(ANYBODY, "x" * 100_001, "fact"), "content"),
        (lambda m: m.create(ANYBODY, "x", "all"), "memory_type"),
        (lambda m: m.create(ANYBODY, "x", "unspecified"), "memory_type"),
        (lambda m: m.create(ANYBODY, "x", "fact", importance=1.01), "importance"),
        (lambda m: m.create(ANYBODY, "x", "fact", importance=float("nan")), "importance"),
        (lambda m: m.create(ANYBODY, "x", "fact", event_id=" "), "event_id"),
        (lambda m: m.create(ANYBODY, "x", "fact", created_at=datetime(9000, 1, 1, tzinfo=UTC)), "created_at"),
        (lambda m: m.page(ANYBODY, page=0), "page"),
        (lambda m: m.page(ANYBODY, page_size=0), "page_size"),
        (lambda m: m.page(ANYBODY, memory_type="x"), "memory_type"),
        (lambda m: m.update(ANYBODY, "i"), "content"),
        (lambda m: m.update(ANYBODY, "i", content=""), "content"),
        (lambda m: m.update(ANYBODY, "i", importance=-0.1), "importance"),
        (lambda m: m.update(ANYBODY, "i", content="x", mask=["memory_type"]), "memory_type"),
        (lambda m: m.update(ANYBODY, "i", content="x", mask=["importance"]), "importance"),
        (lambda m: m.search(ANYBODY, ""), "query"),
        (lambda m: m.search(ANYBODY, "x", top_k=0), "top_k"),
        (lambda m: m.search(ANYBODY, "x", top_k=101), "top_k"),
        (lambda m: m.search(ANYBODY, "x", min_similarity=1.5), "min_similarity"),
        (lambda m: m.search(ANYBODY, "x", memory_type="x"), "memory_type"),
    ],
)
async def test_call_when_a_field_is_malformed_then_named_and_nothing_kept(
    opened: Opened, call: object, param: str
) -> None:
    with pytest.raises(Invalid) as raised:
        await call(opened.memories)  # type: ignore[operator]
    assert raised.value.param == param
    assert await opened.redis.subjects.find("default", "default_user") is None


async def test_degraded_when_the_searchable_side_is_down_then_creates_queue_and_the_rest_is_refused(
    opened: Opened,
) -> None:
    known = await opened.create("a heron")
    os.kill(opened.stores.pids()["vectors"], signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            assert (await opened.memories.create(ANYBODY, "an egret", "fact")).degraded
            for call in (
                opened.memories.page(ANYBODY),
                opened.memories.search(ANYBODY, "heron"),
                opened.memories.update(ANYBODY, known, importance=1),
                opened.memories.delete(ANYBODY, known),
                opened.memories.delete_all(ANYBODY, "fact"),
                opened.extracting().extract(ANYBODY, text="a new heron", deduplicate=True),
            ):
                with pytest.raises(BackendDown):
                    await call
            assert (await opened.extracting().extract(ANYBODY, text="a bittern")).degraded
    finally:
        os.kill(opened.stores.pids()["vectors"], signal.SIGCONT)
    async with asyncio.timeout(30):
        while True:
            try:
                if await opened.contents() == ["a bittern", "an egret", "a heron"]:
                    break
            except BackendDown:
                pass
            await asyncio.sleep(0.05)


async def test_create_when_the_searchable_side_is_killed_then_applied_once_it_is_back(opened: Opened) -> None:
    await opened.create("a heron")
    os.kill(opened.stores.pids()["vectors"], signal.SIGKILL)
    async with asyncio.timeout(30):
        while True:
            try:
                page = await opened.memories.page(ANYBODY)
                if not page.degraded:
                    break
            except BackendDown:
                pass
            await asyncio.sleep(0.02)
    assert [m.content for m in page.memories] == ["a heron"]


async def test_audit_when_created_then_in_the_same_write(opened: Opened) -> None:
    event = audit.AuditEvent(
        "id",
        datetime.now(UTC),
        "memories.create",
        "default",
        "default_user",
        "memories",
        "CreateTypedMemory",
        "ok",
        "x",
    )
    draft = audit.begin(event)
    await opened.create("a heron", event_id="e1")
    assert draft.taken
    assert [e.event_type async for e in opened.redis.audit.tail(None, 10)] == ["memories.create"]
    draft = audit.begin(event)
    await opened.create("a heron", event_id="e1")
    assert (draft.taken, draft.event and draft.event.outcome) == (False, "duplicate")


async def test_notes_when_asked_for_then_every_rule_and_what_is_relevant(opened: Opened) -> None:
    ids = {
        "rule": await opened.create("Answer in French", "rule", importance=0.9),
        "fact": await opened.create("The staging server is called heron", "fact"),
        "far": await opened.create("Ann keeps bees", "fact"),
        "context": await opened.create("Migrating the heron server this week", "context"),
    }
    noted = await opened.notes.for_chat("default", "default_user", "What is the heron server?")
    assert {note.id for note in noted.notes} == {ids["rule"], ids["fact"], ids["context"]}
    assert not noted.degraded
    noted.used([ids["rule"]])
    assert opened.touched.ids == [ids["rule"]]
    only = await opened.notes.for_chat("default", "default_user", "")
    assert [note.id for note in only.notes] == [ids["rule"]]
    assert (await opened.notes.for_chat("default", "nobody", "heron")).notes == ()


async def test_extract_when_deduplicated_then_what_is_known_is_skipped(opened: Opened) -> None:
    extracting = opened.extracting()
    await opened.create("I live in Berlin")
    text = "Lives in Berlin\nI do not live in Berlin\nHas 2 cats\nhas two cats\nHas 3 cats\n我住在杭州\n我住在杭州。"
    got = await extracting.extract(ANYBODY, text=text, deduplicate=True)
    assert [m.content for m in got.memories] == ["I do not live in Berlin", "Has 2 cats", "Has 3 cats", "我住在杭州"]
    assert got.skipped == 3
    again = await extracting.extract(ANYBODY, text=text, deduplicate=True)
    assert (again.memories, again.skipped) == ([], 7)
    assert len(await opened.contents()) == 5


async def test_extract_when_not_deduplicated_then_all_are_kept_in_order(opened: Opened) -> None:
    got = await opened.extracting().extract(ANYBODY, text="a cat\na cat\na dog")
    assert [m.content for m in got.memories] == ["a cat", "a cat", "a dog"]
    assert got.skipped == 0
    assert len(await opened.contents()) == 3
    assert all(m.created_at <= datetime.now(UTC) for m in got.memories)


async def test_extract_when_two_say_the_same_at_once_then_kept_once(opened: Opened) -> None:
    extracting = opened.extracting()
    got = await asyncio.gather(
        *(extracting.extract(ANYBODY, text="The deploy runs on Fridays", deduplicate=True) for _ in range(4))
    )
    assert sorted(len(one.memories) for one in got) == [0, 0, 0, 1]
    assert await opened.contents() == ["The deploy runs on Fridays"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "messages"),
        ({"text": "x", "messages": [("user", "x")]}, "text"),
        ({"text": ""}, "text"),
        ({"text": "x" * 100_001}, "text"),
        ({"messages": [("robot", "x")]}, "messages[0].role"),
        ({"messages": [("user", "x"), ("user", " ")]}, "messages[1].content"),
        ({"messages": [("user", "x")] * 1001}, "messages"),
        ({"messages": [("user", "x" * 60_000)] * 2}, "messages"),
    ],
)
async def test_extract_when_the_source_is_malformed_then_named(
    opened: Opened, given: dict[str, object], param: str
) -> None:
    with pytest.raises(Invalid) as raised:
        await opened.extracting().extract(ANYBODY, **given)  # type: ignore[arg-type]
    assert raised.value.param == param


async def test_extract_when_the_model_knows_meaning_then_paraphrases_are_skipped_and_opposites_kept(
    tmp_path: Path,
) -> None:
    async with open_memories(tmp_path, "minilm") as opened:
        await opened.create("User prefers dark mode")
        await opened.create("My dog is called Rex")
        text = "The user likes dark mode\nUser prefers light mode\nI have a dog named Rex\nI have a dog named Max"
        got = await opened.extracting().extract(ANYBODY, text=text, deduplicate=True)
        assert [m.content for m in got.memories] == ["User prefers light mode", "I have a dog named Max"]
        assert got.skipped == 2
        (best, *_) = (await opened.memories.search(ANYBODY, "What is my pet's name?")).found
        assert "dog" in best.memory.content


async def test_delete_when_another_change_comes_between_then_decided_again(opened: Opened) -> None:
    memory_id = await opened.create("tea")
    subject = await opened.redis.subjects.open("default", "default_user")
    calls = 0

    async def meddle() -> Change | None:
        nonlocal calls
        calls += 1
        if calls == 1:  # another replica, which does not know this process's lock
            await opened.redis.queue.submit(subject, Change(), None, revision=None)
        return Change(remove=(memory_id,))

    await opened.pipeline.change(subject, meddle)
    assert calls == 2
    assert await opened.contents() == []
