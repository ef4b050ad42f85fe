"""Receipts of chats through server and bridge, JSON and SSE: whose they are, and what a deletion leaves of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memoryos import Client
from tests.system import System
from tests.upstream import UpstreamProcess

PAGE = "https://app.example"
ADMIN = "admin-key-of-a-test-0123456789"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    home: Path = tmp_path_factory.mktemp("receipts")
    with UpstreamProcess() as upstream:
        env = {
            "MEMORYOS_AUTH__ENABLED": "true",
            "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
            "MEMORYOS_BRIDGE__CORS_ORIGINS": PAGE,
            "OPENAI_BASE_URL": upstream.base_url,
            # What is tested is what memory does, not what it leaves out on a busy machine.
            "MEMORYOS_MEMORY__RECALL_DEADLINE_SECONDS": "5",
        }
        with System(home, env) as running:
            yield running


def key_of(system: System, tenant: str, user: str) -> str:
    asked = ("keys", "create", "--user", user, "--tenant", tenant, "--permissions", "chat,memory", "--json")
    return str(json.loads(system.cli(*asked).stdout)["api_key"])


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in more.items()}}


def add(system: System, key: str, content: str) -> str:
    status, answer, _ = system.call("POST", "/v1/memory/add", {"role": "user", "content": content}, bearer(key))
    assert status == 200, answer
    return str(answer["memory_id"])


def chat(system: System, key: str, question: str, **how: Any) -> tuple[Any, dict[str, str]]:
    headers = bearer(key, **{name: how.pop(name) for name in ("X_MemoryOS_Memory", "Origin") if name in how})
    body = {"model": "fake-1", "messages": [{"role": "user", "content": question}]} | how
    status, answer, given = system.call("POST", "/v1/chat/completions", body, headers)
    assert status == 200, answer
    return answer, {name.lower(): value for name, value in given.items()}


def receipt(system: System, key: str, receipt_id: str) -> tuple[int, Any]:
    status, answer, _ = system.call("GET", f"/v1/chat/receipts/{receipt_id}", None, bearer(key))
    return status, answer


@pytest.mark.parametrize("stream", [False, True])
def test_receipt_when_a_chat_had_memories_then_it_says_which_why_and_at_what_cost(system: System, stream: bool) -> None:
    key = key_of(system, "north", f"ann-{stream}")
    memory_id = add(system, key, "My sister Ingrid keeps bees near Porto.")
    answer, headers = chat(system, key, "Where does my sister keep bees?", stream=stream, Origin=PAGE)
    assert "X-MemoryOS-Receipt" in headers["access-control-expose-headers"]
    status, shown = receipt(system, key, headers["x-memoryos-receipt"])
    assert status == 200, shown
    (item,) = shown["injected"]
    assert (item["id"], item["tier"], item["cut"], item["outdated"]) == (memory_id, "short_term", False, False)
    assert 0 < item["score"] <= 1
    assert 0 < item["tokens"] < shown["tokens"] <= shown["budget_tokens"] == 2000
    assert "lexical" in {part["name"] for part in item["parts"]}
    assert (shown["model"], shown["source"], shown["provider"]) == (
        "fake-1",
        "upstream",
        headers["x-memoryos-provider"],
    )
    assert (shown["event_id"], shown["degraded"], shown["removed"]) == (headers["x-memoryos-event-id"], False, 0)
    assert "Ingrid" not in json.dumps(shown)
    if not stream:
        member = answer["memoryos"]
        assert member["receipt_id"] == shown["id"]
        assert member["injected"] == [{name: item[name] for name in ("id", "tier", "score", "tokens")}]


def test_receipt_when_another_user_or_tenant_asks_then_404(system: System) -> None:
    ann = key_of(system, "north", "ann-of-others")
    add(system, ann, "I live in Porto.")
    _, headers = chat(system, ann, "Where do I live?")
    receipt_id = headers["x-memoryos-receipt"]
    for tenant, user in (("north", "ben"), ("south", "ann-of-others")):
        key = key_of(system, tenant, user)
        chat(system, key, "Where do I live?")
        status, answer = receipt(system, key, receipt_id)
        assert (status, answer["error"]["code"]) == (404, "not_found")
    assert receipt(system, ann, receipt_id)[0] == 200
    status, _, _ = system.call(
        "GET", f"/v1/chat/receipts/{receipt_id}?user_id=ann-of-others", None, bearer(ADMIN, X_Tenant_ID="north")
    )
    assert status == 200
    for nonsense in ("x", "0" * 36, receipt_id.upper()):
        assert receipt(system, ann, nonsense)[0] == 404


def test_receipt_when_a_memory_is_deleted_then_it_is_named_no_more(system: System) -> None:
    key = key_of(system, "north", "ann-of-deletions")
    gone, kept = add(system, key, "My boat is called Heron."), add(system, key, "My boat Heron lies in the harbour.")
    _, headers = chat(system, key, "What about my boat Heron?")
    receipt_id = headers["x-memoryos-receipt"]
    before = receipt(system, key, receipt_id)[1]
    assert {gone, kept} <= {item["id"] for item in before["injected"]}
    assert system.call("DELETE", f"/v1/memory/{gone}", None, bearer(key))[0] == 200
    after = receipt(system, key, receipt_id)[1]
    assert gone not in json.dumps(after)
    assert kept in json.dumps(after)
    assert after["removed"] >= 1


def test_receipt_when_memory_is_off_or_only_written_then_there_is_none(system: System) -> None:
    key = key_of(system, "north", "ann-of-modes")
    for mode in ("off", "write"):
        _, headers = chat(system, key, "I live in Porto.", X_MemoryOS_Memory=mode)
        assert "x-memoryos-receipt" not in headers
    _, headers = chat(system, key, "Hello", X_MemoryOS_Memory="read")
    assert receipt(system, key, headers["x-memoryos-receipt"])[1]["event_id"] == ""


def test_receipt_when_the_built_in_model_answers_or_a_client_of_grpc_asks_then_there_is_one_too(system: System) -> None:
    key = key_of(system, "north", "ann-of-grpc")
    memory_id = add(system, key, "My sister Ingrid keeps bees.")
    with Client(system.grpc, api_key=key) as client:
        answer = client.chat("Who keeps bees?", model="memoryos/recall")
        assert answer.memory.receipt_id
        assert answer.memory.injected[0].tokens > 0
        mine = client.receipts.get(answer.memory.receipt_id)
        assert [item.id for item in mine.injected] == [memory_id]
        assert mine.injected[0].parts["lexical"]
        (spent,) = client.usage.list(first=mine.created_at.date()).usage
        assert (spent.model, spent.requests, spent.tenant_id) == ("memoryos/recall", 1, "north")
    system.stop()
    system.start()
    status, shown = receipt(system, key, answer.memory.receipt_id)
    assert status == 200, shown
    assert [item["id"] for item in shown["injected"]] == [memory_id]
    assert (shown["source"], shown["provider"], shown["budget_tokens"]) == ("recall", "", 0)
