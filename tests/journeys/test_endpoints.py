"""Every endpoint that is built, asked of the whole system: the documented answers, and clear errors for bad input."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.bridge.endpoints import ENDPOINTS, Endpoint, Text, misfits
from tests.system import System

BUILT = [endpoint for endpoint in ENDPOINTS if endpoint.built]


def filled(value: Any, known: dict[str, str]) -> Any:
    """The value with its `<name>` and `{name}` filled in."""
    if isinstance(value, str):
        for name, text in known.items():
            value = value.replace(f"<{name}>", text).replace(f"{{{name}}}", text)
        return value
    if isinstance(value, dict):
        return {key: filled(inner, known) for key, inner in value.items()}
    return [filled(inner, known) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def known(shared: System) -> dict[str, str]:
    status, added, _ = shared.post(
        "/v1/memory/add",
        {"user_id": "alice", "role": "user", "content": "I moved to Lisbon in May", "event_id": "first"},
    )
    assert status == 200
    status, imported, _ = shared.post(
        "/v1/memory/manage/import", {"user_id": "alice", "segments": [{"summary": "She lives by the sea"}]}
    )
    assert status == 200
    return {
        "memory_id": added["memory_id"],
        "id": added["memory_id"],
        "segment_id": imported["ids"][0],
        "ip": "192.0.2.7",
    }


def noted(shared: System, path: str) -> dict[str, str]:
    """A new key, or the id of a new typed memory, where the path asks for one."""
    if path.startswith("/v1/admin/keys/{key}"):
        return {"key": shared.post("/v1/admin/keys", {"user_id": "alice", "permissions": ["chat"]})[1]["api_key"]}
    if not path.startswith("/v1/memories/{id}"):
        return {}
    return {"id": shared.post("/v1/memories", {"content": "noted", "memory_type": "fact"})[1]["data"]["id"]}


@pytest.mark.parametrize("endpoint", BUILT, ids=lambda e: f"{e.verb} {e.path}")
def test_endpoint_when_built_then_gives_the_documented_answer(
    shared: System, known: dict[str, str], endpoint: Endpoint
) -> None:
    path = filled(endpoint.path, known | noted(shared, endpoint.path))
    status, answer, headers = shared.call(endpoint.verb, path, filled(endpoint.request, known))
    assert status == endpoint.status, answer
    assert headers["X-Request-ID"]
    if isinstance(endpoint.answer, Text):
        assert headers["Content-Type"].startswith(endpoint.answer.content_type)
        assert endpoint.answer.holds in answer
    else:
        assert misfits(answer, endpoint.answer) == []


ADD = {"user_id": "bad", "role": "user", "content": "x"}
CHAT = {"model": "memoryos/recall", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/memory/add", ADD | {"content": ""}, "content"),
        ("/v1/memory/add", ADD | {"content": "y" * 100_001}, "content"),
        ("/v1/memory/add", {"user_id": "bad", "role": "user"}, "content"),
        ("/v1/memory/add", ADD | {"role": "robot"}, "role"),
        ("/v1/memory/add", {"user_id": "bad", "content": "x"}, "role"),
        ("/v1/memory/add", ADD | {"user_id": "a" * 257}, "user_id"),
        ("/v1/memory/add", ADD | {"user_id": "a\u0000b"}, "user_id"),
        ("/v1/memory/add", ADD | {"user_id": "  "}, "user_id"),
        ("/v1/memory/add", ADD | {"event_id": ""}, "event_id"),
        ("/v1/memory/add", ADD | {"session_id": " "}, "session_id"),
        ("/v1/memory/add", ADD | {"timestamp": "yesterday"}, "timestamp"),
        ("/v1/memory/add", ADD | {"contents": "x"}, "contents"),
        ("/v1/memory/add", ADD | {"content": 7}, "content"),
        ("/v1/memory/retrieve", {"user_id": "bad", "query": ""}, "query"),
        ("/v1/memory/retrieve", {"user_id": "bad", "query": "x", "limit": 0}, "limit"),
        ("/v1/memory/retrieve", {"user_id": "bad", "query": "x", "limit": 1001}, "limit"),
        ("/v1/memory/retrieve", {"user_id": "bad", "query": "x", "min_score": 1.5}, "min_score"),
        ("/v1/memory/retrieve", {"user_id": "bad", "query": "x", "max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", CHAT | {"temperature": 3}, "temperature"),
        ("/v1/chat/completions", CHAT | {"max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", CHAT | {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": CHAT["messages"]}, "model"),
    ],
)
def test_bad_input_when_sent_then_400_names_the_field(shared: System, path: str, body: Any, param: str) -> None:
    status, answer, _ = shared.post(path, body)
    assert status == 400, answer
    error = answer["error"]
    assert (error["type"], error["code"], error["param"]) == ("BadRequest", "invalid_argument", param)
    assert shared.post("/v1/memory/retrieve", {"user_id": "bad", "query": "x"})[1]["episodes"] == []


def test_unknown_model_when_named_then_the_documented_error(shared: System) -> None:
    status, answer, _ = shared.post("/v1/chat/completions", CHAT | {"model": "invalid-model"})
    assert status == 400
    assert answer["error"] | {"param": None} == {
        "type": "BadRequest",
        "message": "Invalid model name",
        "details": "Model 'invalid-model' is not supported",
        "code": "model_not_found",
        "param": None,
    }


def test_add_when_repeated_then_duplicate_and_when_changed_then_conflict(shared: System) -> None:
    body = {"user_id": f"u-{uuid.uuid4()}", "role": "user", "content": "once", "event_id": "e"}
    first = shared.post("/v1/memory/add", body)[1]
    again = shared.post("/v1/memory/add", body)[1]
    assert (first["duplicate"], again["duplicate"]) == (False, True)
    assert (again["memory_id"], again["event_id"]) == (first["memory_id"], "e")
    status, answer, _ = shared.post("/v1/memory/add", body | {"content": "twice"})
    assert (status, answer["error"]["type"], answer["error"]["code"]) == (409, "Conflict", "event_id_conflict")
    found = shared.post("/v1/memory/retrieve", {"user_id": body["user_id"], "query": "once twice"})[1]
    assert [turn["content"] for turn in found["short_term"]] == ["once"]


def test_retrieve_when_explained_then_parts_sum_to_raw(shared: System) -> None:
    user = f"u-{uuid.uuid4()}"
    for text in ("The blue heron nests by the mill", "The mill closed in autumn", "Herons eat frogs"):
        shared.post("/v1/memory/add", {"user_id": user, "role": "user", "content": text, "session_id": "s"})
    _, found, _ = shared.post(
        "/v1/memory/retrieve", {"user_id": user, "query": "Where does the blue heron nest?", "explain": True}
    )
    assert found["episodes"][0]["content"] == "The blue heron nests by the mill"
    assert [e["episode_id"] for e in found["explanations"]] == [e["id"] for e in found["episodes"]]
    for explanation in found["explanations"]:
        assert sum(part["value"] for part in explanation["parts"]) == pytest.approx(explanation["raw"])
    scores = [e["score"] for e in found["episodes"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_short_term_when_more_than_twenty_turns_then_the_newest_oldest_first(shared: System) -> None:
    user = f"u-{uuid.uuid4()}"
    for n in range(25):
        shared.post("/v1/memory/add", {"user_id": user, "role": "user", "content": f"turn {n}"})
    _, found, _ = shared.post("/v1/memory/retrieve", {"user_id": user, "query": "turn"})
    assert [turn["content"] for turn in found["short_term"]] == [f"turn {n}" for n in range(5, 25)]


def test_unknown_user_when_asked_then_empty(shared: System) -> None:
    status, found, _ = shared.post("/v1/memory/retrieve", {"user_id": f"u-{uuid.uuid4()}", "query": "anything"})
    assert status == 200
    assert found == {
        "episodes": [],
        "short_term": [],
        "mid_term": [],
        "long_term": {"profile": "", "knowledge": [], "facts": []},
        "explanations": [],
    }


def test_chinese_when_told_then_found(shared: System) -> None:
    user = f"u-{uuid.uuid4()}"
    for text in ("我住在杭州西湖边", "我的狗叫豆豆", "下周三要去北京出差"):
        shared.post("/v1/memory/add", {"user_id": user, "role": "user", "content": text})
    _, found, _ = shared.post("/v1/memory/retrieve", {"user_id": user, "query": "我的狗叫什麼?"})
    assert found["episodes"][0]["content"] == "我的狗叫豆豆"


def test_documentation_when_its_examples_are_sent_as_they_stand_then_they_work(shared: System) -> None:
    paths = shared.get("/openapi.json")[1]["paths"]
    sent = 0
    for path, operations in paths.items():
        for verb, operation in operations.items():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                named = filled(path, noted(shared, path))
                status, answer, _ = shared.call(verb.upper(), named, content["example"])
                assert status == 200, (path, answer)
                sent += 1
    assert sent >= 3
