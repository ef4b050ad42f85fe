"""Typed memories over REST, as their documentation shows them, and in chats: the whole system as real processes."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memoryos
from memoryos import errors
from tests.bridge.endpoints import TIME, misfits
from tests.system import System
from tests.upstream import UpstreamProcess

RULE = "使用者偏好繁體中文回覆,技術術語保留英文"
MEMORY = {
    "id": str,
    "content": str,
    "memory_type": str,
    "importance": float,
    "created_at": TIME,
    "updated_at": TIME,
    "version": int,
}


class User:
    """Somebody's calls."""

    def __init__(self, system: System, **headers: str) -> None:
        self.system = system
        self.headers = headers or {"X-User-ID": f"u-{uuid.uuid4()}"}

    def call(self, verb: str, path: str, body: Any = None, status: int = 200) -> Any:
        got, answer, _ = self.system.call(verb, f"/v1/memories{path}", body, self.headers)
        assert got == status, answer
        if status == 200:
            assert answer["success"] is True
            return answer["data"]
        assert answer["success"] is False
        return answer["error"]

    def create(self, content: str, kind: str = "fact", **more: Any) -> Any:
        return self.call("POST", "", {"content": content, "memory_type": kind} | more)

    def contents(self, query: str = "") -> list[str]:
        return [memory["content"] for memory in self.call("GET", query)["memories"]]

    def chat(self, question: str, model: str, **body: Any) -> tuple[Any, Any]:
        asked = {"model": model, "messages": [{"role": "user", "content": question}]} | body
        status, answer, headers = self.system.call("POST", "/v1/chat/completions", asked, self.headers)
        assert status == 200, answer
        return answer, headers


@pytest.fixture
def user(shared: System) -> User:
    return User(shared)


def test_creation_when_its_event_is_known_then_said_and_its_time_is_kept(user: User) -> None:
    body = {"content": "x", "memory_type": "fact", "event_id": "e1", "created_at": "2024-05-06T07:08:09Z"}
    made = user.call("POST", "", body)
    assert (made["created_at"], "duplicate" in made) == ("2024-05-06T07:08:09Z", False)
    assert user.call("POST", "", body) == made | {"duplicate": True}
    assert user.call("GET", f"/{made['id']}") == made


def test_documentation_when_followed_word_for_word_then_it_is_as_it_says(user: User) -> None:
    made = user.call("POST", "", {"content": RULE, "memory_type": "rule", "importance": 0.9})
    assert misfits(made, MEMORY) == []
    assert (made["content"], made["memory_type"], made["importance"]) == (RULE, "rule", 0.9)
    assert user.create("x")["importance"] == 0.5

    listed = user.call("GET", "?memory_type=rule&page=1&page_size=20")
    assert listed == {"memories": [made], "total": 1, "page": 1, "page_size": 20}
    assert user.call("GET", f"/{made['id']}") == made

    changed = user.call("PATCH", f"/{made['id']}", {"importance": 0.7})
    assert changed == made | {"importance": 0.7, "version": 2, "updated_at": changed["updated_at"]}

    search = {"query": "使用者語言偏好", "top_k": 5, "min_similarity": 0.3, "memory_type": "rule"}
    (hit,) = user.call("POST", "/search", search)["results"]
    assert {k: hit[k] for k in ("id", "content", "memory_type", "importance")} == {
        "id": made["id"],
        "content": RULE,
        "memory_type": "rule",
        "importance": 0.7,
    }
    assert 0.3 <= hit["score"] <= 1

    assert user.call("DELETE", f"/{made['id']}") == {"id": made["id"], "deleted": True}
    assert user.call("GET", f"/{made['id']}", status=404)["code"] == "not_found"
    user.create("gone", "context")
    assert user.call("DELETE", "", {"memory_type": "context"}) == {"deleted": 1}
    user.create("gone, too", "context")
    assert user.call("DELETE", "?memory_type=context") == {"deleted": 1}
    assert user.contents() == ["x"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {
                "messages": [
                    {"role": "user", "content": "我用 React 19 + TypeScript,後端是 Go"},
                    {"role": "assistant", "content": "了解,之後範例會用這個 stack"},
                ],
                "deduplicate": True,
            },
            ("React 19", "TypeScript", "Go"),
        ),
        ({"text": "使用者使用 Python 3.12,偏好 async 模式", "deduplicate": True}, ("Python 3.12", "async")),
    ],
    ids=["messages", "text"],
)
def test_extract_when_the_documented_examples_are_sent_then_kept_and_the_second_time_skipped(
    user: User, body: Any, said: tuple[str, ...]
) -> None:
    first = user.call("POST", "/extract", body)
    assert first["skipped"] == 0
    assert [miss for memory in first["memories"] for miss in misfits(memory, MEMORY)] == []
    text = " ".join(memory["content"] for memory in first["memories"])
    assert [word for word in said if word not in text] == []
    assert "stack" not in text
    again = user.call("POST", "/extract", body)
    assert again == {"memories": [], "skipped": len(first["memories"])}
    assert sorted(user.contents()) == sorted(memory["content"] for memory in first["memories"])


BAD: list[tuple[str, str, Any, str]] = [
    ("POST", "", {"memory_type": "rule"}, "content"),
    ("POST", "", {"content": "", "memory_type": "rule"}, "content"),
    ("POST", "", {"content": "  ", "memory_type": "rule"}, "content"),
    ("POST", "", {"content": 7, "memory_type": "rule"}, "content"),
    ("POST", "", {"content": None, "memory_type": "rule"}, "content"),
    ("POST", "", {"content": "x" * 100_001, "memory_type": "rule"}, "content"),
    ("POST", "", {"content": "x"}, "memory_type"),
    ("POST", "", {"content": "x", "memory_type": "all"}, "memory_type"),
    ("POST", "", {"content": "x", "memory_type": ""}, "memory_type"),
    ("POST", "", {"content": "x", "memory_type": "unspecified"}, "memory_type"),
    ("POST", "", {"content": "x", "memory_type": 1}, "memory_type"),
    ("POST", "", {"content": "x", "memory_type": "rule", "importance": 1.5}, "importance"),
    ("POST", "", {"content": "x", "memory_type": "rule", "importance": -1}, "importance"),
    ("POST", "", {"content": "x", "memory_type": "rule", "importance": "high"}, "importance"),
    ("POST", "", {"content": "x", "memory_type": "rule", "importance": True}, "importance"),
    ("POST", "", {"content": "x", "memory_type": "rule", "tags": ["x"]}, "tags"),
    ("GET", "?page=0", None, "page"),
    ("GET", "?page=-1", None, "page"),
    ("GET", "?page=one", None, "page"),
    ("GET", "?page=1.5", None, "page"),
    ("GET", "?page_size=0", None, "page_size"),
    ("GET", "?memory_type=all", None, "memory_type"),
    ("GET", "?limit=3", None, "limit"),
    ("GET", "?page=1&page=2", None, "page"),
    ("PATCH", "/i", {}, "content"),
    ("PATCH", "/i", {"importance": None}, "content"),
    ("PATCH", "/i", {"memory_type": "fact"}, "memory_type"),
    ("PATCH", "/i", {"importance": 0.5, "created_at": "2026-05-08T12:00:00Z"}, "created_at"),
    ("PATCH", "/i", {"importance": 2}, "importance"),
    ("PATCH", "/i", {"content": ""}, "content"),
    ("PATCH", "/i", {"content": ["x"]}, "content"),
    ("PATCH", "/i", {"importance": 0.5, "update_mask": "content"}, "update_mask"),
    ("POST", "/search", {}, "query"),
    ("POST", "/search", {"query": ""}, "query"),
    ("POST", "/search", {"query": "x" * 100_001}, "query"),
    ("POST", "/search", {"query": "x", "top_k": 0}, "top_k"),
    ("POST", "/search", {"query": "x", "top_k": 101}, "top_k"),
    ("POST", "/search", {"query": "x", "top_k": "5"}, "top_k"),
    ("POST", "/search", {"query": "x", "min_similarity": 1.1}, "min_similarity"),
    ("POST", "/search", {"query": "x", "min_similarity": -0.1}, "min_similarity"),
    ("POST", "/search", {"query": "x", "memory_type": "any"}, "memory_type"),
    ("POST", "/search", {"query": "x", "limit": 5}, "limit"),
    ("POST", "/extract", {}, "messages"),
    ("POST", "/extract", {"messages": []}, "messages"),
    ("POST", "/extract", {"messages": "hello"}, "messages"),
    ("POST", "/extract", {"text": ""}, "text"),
    ("POST", "/extract", {"text": "x", "messages": [{"role": "user", "content": "x"}]}, "text"),
    ("POST", "/extract", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ("POST", "/extract", {"messages": [{"content": "x"}]}, "messages[0].role"),
    ("POST", "/extract", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("POST", "/extract", {"messages": [{"role": "user", "content": "x", "at": 1}]}, "messages[0].at"),
    ("POST", "/extract", {"text": "x", "deduplicate": "yes"}, "deduplicate"),
    ("DELETE", "", None, "memory_type"),
    ("DELETE", "", {}, "memory_type"),
    ("DELETE", "", {"memory_type": "all"}, "memory_type"),
    ("DELETE", "?memory_type=all", None, "memory_type"),
    ("DELETE", "?memory_type=", None, "memory_type"),
    ("DELETE", "", {"memory_type": "fact", "importance": 1}, "importance"),
]


def test_bad_input_when_sent_then_400_names_the_field_and_nothing_is_written(user: User) -> None:
    user.create("stays")
    for verb, path, body, param in BAD:
        error = user.call(verb, path, body, status=400)
        seen = (error["type"], error["code"], error["param"])
        assert seen == ("BadRequest", "invalid_argument", param), (verb, path, str(body)[:100], error)
        assert error["message"]
    assert user.contents() == ["stays"]


def test_memory_type_when_written_in_capitals_then_read_all_the_same(user: User) -> None:
    assert user.create("x", "RULE")["memory_type"] == "rule"
    assert user.contents("?memory_type=Rule") == ["x"]


def test_list_when_paged_then_newest_first_coerced_and_empty_past_the_end(user: User) -> None:
    for n in range(7):
        user.create(f"fact {n}")
    pages = [user.contents(f"?page={page}&page_size=3") for page in (1, 2, 3, 4)]
    assert pages == [["fact 6", "fact 5", "fact 4"], ["fact 3", "fact 2", "fact 1"], ["fact 0"], []]
    far = user.call("GET", "?page=4&page_size=3")
    assert (far["total"], far["page"], far["page_size"]) == (7, 4, 3)
    assert user.call("GET", "?page_size=5000")["page_size"] == 100


def test_history_when_changed_then_every_version_newest_first(user: User) -> None:
    made = user.create("Drinks coffee")
    user.call("PATCH", f"/{made['id']}", {"content": "Drinks matcha"})
    _, versions, _ = user.system.call("GET", f"/v1/memory/{made['id']}/history", None, user.headers)
    assert [(v["version"], v["content"]) for v in versions] == [(2, "Drinks matcha"), (1, "Drinks coffee")]
    assert versions[1]["changed_at"] == made["created_at"]
    found = user.call("POST", "/search", {"query": "coffee"})["results"]
    assert {one["content"] for one in found} <= {"Drinks matcha"}  # near in meaning; the old version is not found


def test_owner_when_nobody_is_named_then_the_default_user_and_everybody_else_is_a_stranger(
    shared: System, user: User
) -> None:
    own = user.create("a heron of mine")
    nobody = User(shared, **{"X-Request-ID": "x"})
    other = User(shared)
    theirs = nobody.create("a heron of nobody")
    for stranger, memory in ((other, own), (nobody, own), (user, theirs)):
        for verb, body in (("GET", None), ("PATCH", {"importance": 1}), ("DELETE", None)):
            assert stranger.call(verb, f"/{memory['id']}", body, status=404)["type"] == "NotFound"
    assert other.contents() == other.call("POST", "/search", {"query": "heron"})["results"] == []
    named = User(shared, **{"X-User-ID": "default_user"})
    assert named.call("GET", f"/{theirs['id']}") == theirs


def test_restart_when_killed_then_every_memory_and_version_is_there(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        user = User(system, **{"X-User-ID": "ann"})
        ids = [user.create(f"fact {n}")["id"] for n in range(5)]
        user.call("PATCH", f"/{ids[0]}", {"content": "changed"})
        user.call("DELETE", f"/{ids[1]}")
        system.kill(group=True)
        system.start()
        assert user.contents() == ["fact 4", "fact 3", "fact 2", "changed"]
        _, versions, _ = system.call("GET", f"/v1/memory/{ids[0]}/history", None, user.headers)
        assert [v["content"] for v in versions] == ["changed", "fact 0"]


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, UpstreamProcess]]:
    with UpstreamProcess() as upstream:
        env = {
            "MEMORYOS_UPSTREAM__BASE_URL": upstream.base_url,
            "MEMORYOS_MEMORY__RECALL_DEADLINE_SECONDS": "5",
            "MEMORYOS_MEMORY__CONSOLIDATION_MODEL": "fake-1",
        }
        with System(tmp_path_factory.mktemp("chatting"), env) as system:
            yield system, upstream


def injected(upstream: UpstreamProcess, question: str) -> list[dict[str, Any]]:
    """The memories in the request that asked a question."""
    sent = [json.loads(request["body"]) for request in upstream.requests()]
    (body,) = [one for one in sent if one["messages"][-1]["content"] == question]
    texts = [m["content"] for m in body["messages"] if m["role"] == "system"]
    return [json.loads(line) for text in texts for line in text.splitlines()[2:-1]]


def test_chat_when_typed_memories_are_there_then_rules_come_first_and_the_relevant_follow(
    chatting: tuple[System, UpstreamProcess],
) -> None:
    system, upstream = chatting
    user = User(system)
    minor = user.create("Keep it short", "rule", importance=0.3)["id"]
    major = user.create(RULE, "rule", importance=0.9)["id"]
    fact = user.create("The staging server is called heron", "fact", importance=0.9)["id"]
    user.create("Ann keeps bees", "fact", importance=1.0)
    answer, headers = user.chat("What is the staging server called?", "fake-1")
    lines = injected(upstream, "What is the staging server called?")
    assert [(line["id"], line["tier"]) for line in lines][:3] == [(major, "rule"), (minor, "rule"), (fact, "fact")]
    assert "Ann keeps bees" not in [line["text"] for line in lines]
    reported = [(one["id"], one["tier"]) for one in answer["memoryos"]["injected"]]
    assert reported == [(line["id"], line["tier"]) for line in lines]
    assert headers["X-MemoryOS-Memories"] == str(len(lines))
    other = User(system)
    _, headers = other.chat("What is the staging server called, then?", "fake-1")
    assert headers["X-MemoryOS-Memories"] == "0"


def test_recall_model_when_a_typed_memory_answers_then_quoted(shared: System, user: User) -> None:
    made = user.create("The staging server is called heron")
    answer, _ = user.chat("What is the staging server called?", "memoryos/recall")
    assert "heron" in answer["choices"][0]["message"]["content"]
    (first, *_) = answer["memoryos"]["injected"]
    assert (first["id"], first["tier"]) == (made["id"], "fact")


def test_extract_when_a_model_is_configured_then_it_reads_and_rules_stand_in_when_it_fails(
    chatting: tuple[System, UpstreamProcess],
) -> None:
    system, upstream = chatting
    user = User(system)
    listed = {"memories": [{"content": "Lives in Porto", "memory_type": "fact", "importance": 0.8}]}
    said = {"text": "I live in Porto."}
    whole = {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": json.dumps(listed)}, "finish_reason": "stop"}
        ]
    }
    upstream.will({"body": [json.dumps(whole)]})
    (memory,) = user.call("POST", "/extract", said)["memories"]
    assert (memory["content"], memory["memory_type"], memory["importance"]) == ("Lives in Porto", "fact", 0.8)
    # Unscripted, the provider echoes: that is no answer, twice.
    by_rules = user.call("POST", "/extract", said)["memories"]
    assert by_rules
    assert any("Porto" in memory["content"] for memory in by_rules)


def test_stores_when_one_is_down_then_creates_are_kept_changes_refused_and_all_is_there_after(system: System) -> None:
    user = User(system, **{"X-User-ID": "ann"})
    made = user.create("a heron")
    with system.frozen("edge"):
        status, answer, headers = system.call(
            "POST", "/v1/memories", {"content": "an egret", "memory_type": "fact"}, user.headers
        )
        assert (status, answer["success"], headers["X-MemoryOS-Status"]) == (200, True, "degraded")
        status, answer, headers = system.call(
            "POST", "/v1/memories/extract", {"text": "I live in Porto."}, user.headers
        )
        assert (status, headers["X-MemoryOS-Status"]) == (200, "degraded")
        extracted = [memory["content"] for memory in answer["data"]["memories"]]
        for verb, path, body in (
            ("GET", "", None),
            ("GET", f"/{made['id']}", None),
            ("PATCH", f"/{made['id']}", {"importance": 1}),
            ("DELETE", f"/{made['id']}", None),
            ("DELETE", "", {"memory_type": "fact"}),
            ("POST", "/search", {"query": "heron"}),
            ("POST", "/extract", {"text": "I live in Porto.", "deduplicate": True}),
        ):
            error = user.call(verb, path, body, status=503)
            assert (error["type"], error["code"]) == ("ServiceUnavailable", "store_unavailable")
    end = time.monotonic() + 30
    while True:
        status, answer, _ = system.call("GET", "/v1/memories", None, user.headers)
        if status == 200 and len(answer["data"]["memories"]) == 2 + len(extracted):
            break
        assert time.monotonic() < end, answer
        time.sleep(0.1)
    assert {memory["content"] for memory in answer["data"]["memories"]} == {"a heron", "an egret", *extracted}
    with system.frozen("valkey"):
        for verb, path, body in (
            ("POST", "", {"content": "a bittern", "memory_type": "fact"}),
            ("PATCH", f"/{made['id']}", {"importance": 1}),
            ("DELETE", f"/{made['id']}", None),
        ):
            assert user.call(verb, path, body, status=503)["code"] == "store_unavailable"
        assert user.call("GET", f"/{made['id']}")["content"] == "a heron"


def test_client_when_used_then_every_method_works(shared: System) -> None:
    with memoryos.Client(shared.grpc, user_id=f"u-{uuid.uuid4()}") as client:
        made = client.memories.create(RULE, "rule", 0.9)
        assert client.memories.get(made.id) == made
        assert client.memories.update(made.id, importance=0.7).version == 2
        assert [hit.id for hit in client.memories.search("使用者語言偏好", min_similarity=0.3)] == [made.id]
        assert [version.content for version in client.history(made.id)] == [RULE, RULE]
        answer = client.chat("What is new?", model="memoryos/recall")
        assert not answer.degraded
        extracted = client.memories.extract("I live in Porto.", deduplicate=True)
        assert client.memories.list(page_size=1).total == 1 + len(extracted.memories)
        client.memories.delete(made.id)
        assert client.memories.delete_all("rule") == 0
        with pytest.raises(errors.NotFound):
            client.memories.get(made.id)
