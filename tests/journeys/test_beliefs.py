"""What is believed, from the first sentence to the answer: over REST and gRPC, in English and Chinese, now and as of then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import memoryos
from tests.system import System

PATIENCE = 30.0


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    home: Path = tmp_path_factory.mktemp("beliefs")
    with System(home, {"MEMORYOS_MEMORY__SESSION_IDLE_SECONDS": "2"}) as running:
        yield running


def tell(system: System, user: str, content: str, at: str | None = None, **more: str) -> Any:
    body = {"user_id": user, "role": "user", "content": content, **more}
    status, answer, _ = system.call("POST", "/v1/memory/add", body | ({"timestamp": at} if at else {}))
    assert status == 200, answer
    return answer


def retrieve(system: System, user: str, query: str, **more: Any) -> Any:
    status, answer, _ = system.call("POST", "/v1/memory/retrieve", {"user_id": user, "query": query, **more})
    assert status == 200, answer
    return answer


def until(system: System, user: str, query: str, good: Callable[[dict[str, Any]], bool], **more: Any) -> Any:
    """The first answer that is good: derived memory follows what was said within a moment."""
    end = time.monotonic() + PATIENCE
    while not good(answer := retrieve(system, user, query, **more)):
        assert time.monotonic() < end, answer["long_term"] | {"mid_term": answer["mid_term"]}
        time.sleep(0.1)
    return answer


def knows(text: str) -> Callable[[dict[str, Any]], bool]:
    return lambda answer: any(text in fact for fact in answer["long_term"]["knowledge"])


def test_retrieve_when_the_documentations_example_is_told_then_its_answer_comes(system: System) -> None:
    told = tell(system, "alice_001", "My name is Alice and I work as a data scientist")
    answer = until(system, "alice_001", "What do you know about me?", knows("Works as a data scientist"))
    assert "Works as a data scientist" in answer["long_term"]["knowledge"]
    assert "Alice" in answer["long_term"]["profile"]
    assert "data scientist" in answer["long_term"]["profile"]
    fact = next(f for f in answer["long_term"]["facts"] if f["predicate"] == "has_role")
    assert fact["source_ids"] == [told["memory_id"]]
    assert 0 < fact["confidence"] <= 1


@pytest.mark.parametrize(
    ("user", "old", "new", "question", "before", "after"),
    [
        ("mover", "I live in Paris.", "I moved to Berlin.", "Where do I live?", "Paris", "Berlin"),
        ("搬家", "我住在巴黎。", "我搬到柏林了。", "我住在哪里?", "巴黎", "柏林"),
        ("搬家者", "我住在巴黎。", "我搬到柏林了。", "我住在哪裡?", "巴黎", "柏林"),
    ],
)
def test_retrieve_when_a_belief_changes_then_the_new_one_and_as_of_before_the_old_one(
    system: System, user: str, old: str, new: str, question: str, before: str, after: str
) -> None:
    tell(system, user, old, "2026-01-10T10:00:00Z")
    tell(system, user, new, "2026-02-10T10:00:00Z")
    now = until(system, user, question, knows(after))
    then = retrieve(system, user, question, as_of="2026-01-20T00:00:00Z")
    assert not knows(before)(now)
    assert new in [e["content"] for e in now["episodes"]][:1]
    assert old in [e["content"] for e in then["episodes"]][:1]
    assert after in now["long_term"]["profile"]
    assert knows(before)(then)
    assert not knows(after)(then)
    assert before in then["long_term"]["profile"]
    assert retrieve(system, user, question, as_of="2026-01-01T00:00:00Z")["long_term"] == {
        "profile": "",
        "knowledge": [],
        "facts": [],
    }
    for answer, place in ((now, after), (then, before)):
        fact = next(f for f in answer["long_term"]["facts"] if place in f["text"])
        status, history, _ = system.call("GET", f"/v1/memory/{fact['id']}/history", headers={"X-User-ID": quote(user)})
        assert status == 200, history
        assert [v["version"] for v in history] == [2, 1]
        assert after in history[0]["content"]
        assert before in history[1]["content"]
        assert history[1]["changed_at"].startswith("2026-01-10T10:00:00")
    # What was contradicted stays findable as it was said.
    assert old in {e["content"] for e in retrieve(system, user, old)["episodes"]}


def test_retrieve_when_one_moved_twice_then_the_last_place_leads_and_the_score_explains_it(system: System) -> None:
    for month, said in enumerate(("I live in Paris.", "I moved to Berlin.", "I moved to Rome."), 1):
        tell(system, "rover", said, f"2026-{month:02}-10T10:00:00Z")
    answer = until(system, "rover", "Where do I live?", knows("Rome"), explain=True)
    assert answer["episodes"][0]["content"] == "I moved to Rome."
    assert [e["score"] for e in answer["episodes"]] == sorted((e["score"] for e in answer["episodes"]), reverse=True)
    for explained in answer["explanations"]:
        assert sum(part["value"] for part in explained["parts"]) == pytest.approx(explained["raw"])
    assert "instead" in {part["name"] for part in answer["explanations"][0]["parts"]}
    assert [e["content"] for e in answer["episodes"] if e["outdated"]] == ["I live in Paris.", "I moved to Berlin."]
    assert answer["long_term"]["knowledge"][0] == "Lives in Rome"
    chat = {"model": "memoryos/recall", "messages": [{"role": "user", "content": "Where do I live?"}]}
    status, said, _ = system.call("POST", "/v1/chat/completions", chat, headers={"X-User-ID": "rover"})
    assert status == 200, said
    first = said["choices"][0]["message"]["content"].splitlines()[1]
    assert "Rome" in first, said


def test_retrieve_when_asked_over_grpc_then_the_same_as_over_rest(system: System) -> None:
    tell(system, "gina", "I live in Lisbon.", "2026-01-10T10:00:00Z")
    tell(system, "gina", "I moved to Porto.", "2026-02-10T10:00:00Z")
    rest = until(system, "gina", "Where do I live?", knows("Porto"))
    with memoryos.Client(system.grpc) as client:
        found = client.retrieve("Where do I live?", user_id="gina")
        before = client.retrieve("Where do I live?", user_id="gina", as_of=datetime(2026, 1, 20, tzinfo=UTC))
    assert list(found.knowledge) == rest["long_term"]["knowledge"]
    assert found.profile == rest["long_term"]["profile"]
    assert any("Lisbon" in fact for fact in before.knowledge)


@pytest.mark.parametrize(
    ("user", "text"),
    [
        ("no1", "I don't live in Paris."),
        ("no2", "Should I move to Berlin?"),
        ("no3", "I have never worked at Google."),
        ("no4", "我不住在巴黎。"),
        ("no5", "我从来没有养过狗。"),
    ],
)
def test_retrieve_when_something_is_denied_or_asked_then_no_fact_says_so(system: System, user: str, text: str) -> None:
    tell(system, user, text)
    tell(system, user, "My name is Zoe.")
    answer = until(system, user, "Where do I live and work? 我住在哪里?", knows("Zoe"))
    (name,) = answer["long_term"]["facts"]
    assert name["predicate"] == "name"


@pytest.mark.parametrize(
    ("user", "old", "denial", "value"),
    [
        ("nuts", "I'm allergic to nuts.", "It turns out I'm not allergic to nuts after all.", "nuts"),
        ("花生", "我对花生过敏。", "我对花生不过敏。", "花生"),
    ],
)
def test_retrieve_when_a_belief_is_denied_then_it_is_over_and_as_of_before_it_holds(
    system: System, user: str, old: str, denial: str, value: str
) -> None:
    tell(system, user, old, "2026-01-10T10:00:00Z")
    until(system, user, "What am I allergic to?", knows(value))
    tell(system, user, denial, "2026-02-10T10:00:00Z")
    now = until(system, user, "What am I allergic to?", lambda answer: not knows(value)(answer))
    assert value not in now["long_term"]["profile"]
    assert knows(value)(retrieve(system, user, "What am I allergic to?", as_of="2026-01-20T00:00:00Z"))


def test_retrieve_when_a_conversation_is_over_then_its_topic_is_in_mid_term_memory(system: System) -> None:
    said = [
        "I adopted a dog from the shelter in Lyon, her name is Biscuit.",
        "Biscuit is a border collie mix, about two years old.",
        "There is a park two streets away where the dog can run.",
    ]
    ids = [tell(system, "owner", text, session_id="dog")["memory_id"] for text in said]
    answer = until(system, "owner", "Which dog did I adopt?", lambda a: bool(a["mid_term"]))
    (topic,) = answer["mid_term"]
    assert "Biscuit" in topic["summary"]
    assert 0 < topic["score"] <= 1
    assert 3 <= len(topic["tags"]) <= 8
    assert retrieve(system, "owner", "tax law of Peru")["mid_term"] == []
    status, history, _ = system.call("GET", f"/v1/memory/{topic['id']}/history", headers={"X-User-ID": "owner"})
    assert (status, [v["version"] for v in history]) == (200, [1])
    # Returned is used: the segment has warmed up.
    end = time.monotonic() + PATIENCE
    body = {"user_id": "owner", "tags": topic["tags"][:1]}
    while (found := system.call("POST", "/v1/memory/manage/search/tags", body))[1]["segments"][0]["heat_score"] <= 1:
        assert time.monotonic() < end, found
        time.sleep(0.2)
    for memory_id in ids:
        assert system.call("DELETE", f"/v1/memory/{memory_id}?user_id=owner")[0] == 200
    assert retrieve(system, "owner", "Which dog did I adopt?")["mid_term"] == []


def test_retrieve_when_the_budget_is_small_then_episodes_come_first(system: System) -> None:
    tell(system, "tight", "I live in Oslo.")
    tell(system, "tight", "My name is Tom.")
    until(system, "tight", "Where do I live?", knows("Oslo"))
    answer = retrieve(system, "tight", "Where do I live?", max_tokens=20)
    assert answer["episodes"]
    assert len(answer["long_term"]["knowledge"]) < 2
    assert retrieve(system, "tight", "Where do I live?", max_tokens=1)["long_term"]["knowledge"] == []


@pytest.mark.parametrize(
    ("told", "moved", "about", "right", "where"),
    [
        (
            "I live in Paris, I work at Acme and I am allergic to peanuts.", "I moved to Berlin.",
            "What am I allergic to?", "peanuts", "Where do I live?",
        ),
        ("我住在上海，对花生过敏。", "我搬到北京了。", "我对什么过敏？", "花生", "我住在哪里？"),
    ],
)  # fmt: skip
def test_retrieve_when_one_thing_of_a_turn_is_over_then_questions_about_the_others_still_find_it(
    system: System, told: str, moved: str, about: str, right: str, where: str
) -> None:
    user = f"mixed-{len(told)}"
    tell(system, user, told, "2026-01-01T10:00:00Z")
    tell(system, user, moved, "2026-06-01T10:00:00Z")
    answer = until(system, user, where, lambda found: found["episodes"] and found["episodes"][0]["content"] == moved)
    assert [e["outdated"] for e in answer["episodes"]] == [False, True]
    best = retrieve(system, user, about)["episodes"][0]
    assert right in best["content"]
    assert not best["outdated"]
    body = {"model": "memoryos/recall", "messages": [{"role": "user", "content": about}]}
    status, said, _ = system.post("/v1/chat/completions", body, {"X-User-ID": user, "X-MemoryOS-Memory": "read"})
    assert status == 200
    assert right in said["choices"][0]["message"]["content"]
