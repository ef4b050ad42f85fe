"""Consent through server and bridge: what a withdrawal stops, at once, and what goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memoryos
from memoryos import errors
from tests.system import System, until
from tests.upstream import UpstreamProcess

ADMIN = "admin-key-of-a-test-0123456789"
SAID = "My sister Ingrid keeps bees in Porto."
PURPOSE = "data_processing"


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamProcess]:
    with UpstreamProcess() as running:
        yield running


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, upstream: UpstreamProcess) -> Iterator[System]:
    home: Path = tmp_path_factory.mktemp("consent")
    env = {
        "MEMORYOS_AUTH__ENABLED": "true",
        "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
        "OPENAI_BASE_URL": upstream.base_url,
        # What is withheld is withheld by decision, not by a busy machine.
        "MEMORYOS_MEMORY__RECALL_DEADLINE_SECONDS": "5",
        "MEMORYOS_MEMORY__REMEMBER_DEADLINE_SECONDS": "5",
    }
    with System(home, env) as running:
        yield running


class Person:
    """Somebody with a key of their own."""

    def __init__(self, system: System, user: str, permissions: str = "chat,memory,security") -> None:
        asked = ("keys", "create", "--user", user, "--tenant", "north", "--permissions", permissions, "--json")
        self.system, self.user = system, user
        self.head = {"Authorization": f"Bearer {json.loads(system.cli(*asked).stdout)['api_key']}"}

    def call(self, verb: str, path: str, body: Any = None, **head: str) -> tuple[int, Any, Any]:
        return self.system.call(verb, path, body, {**self.head, **head})

    def post(self, path: str, body: Any, **head: str) -> tuple[int, Any, Any]:
        return self.call("POST", path, body, **head)

    def decide(self, granted: bool, purpose: str = PURPOSE) -> None:
        status, answer, _ = self.post("/v1/security/gdpr/consent", {"purpose": purpose, "granted": granted})
        assert (status, answer) == (200, {"status": "ok", "message": "Consent recorded"})

    def chat(self, stream: bool = False, **head: str) -> tuple[Any, Any]:
        body: dict[str, Any] = {"model": "fake-1", "messages": [{"role": "user", "content": "Who keeps bees?"}]}
        if stream:
            body["stream"] = True
        status, answer, headers = self.post("/v1/chat/completions", body, **head)
        assert status == 200, answer
        return answer, headers

    def retrieve(self) -> Any:
        status, answer, _ = self.post("/v1/memory/retrieve", {"query": "Who keeps bees?"})
        assert status == 200, answer
        return answer


def test_consent_when_checked_then_the_documented_shape_and_the_last_decision(system: System) -> None:
    ann = Person(system, "alice_001")
    asked = {"user_id": "alice_001", "purpose": PURPOSE}
    shown = {"status": "ok", "user_id": "alice_001", "purpose": PURPOSE}
    assert ann.post("/v1/security/gdpr/consent/check", asked)[:2] == (200, shown | {"has_consent": False})
    for granted in (True, False, True):
        ann.decide(granted)
        assert ann.post("/v1/security/gdpr/consent/check", asked)[1] == shown | {"has_consent": granted}
    for body, param in (
        ({"purpose": PURPOSE}, "granted"),
        ({"granted": True}, "purpose"),
        ({"purpose": "Not This", "granted": True}, "purpose"),
    ):
        status, answer, _ = ann.post("/v1/security/gdpr/consent", body)
        assert (status, answer["error"]["param"]) == (400, param)
    ben = Person(system, "ben", "chat,memory,security,act_as")
    status, answer, _ = ben.post("/v1/security/gdpr/consent", asked | {"granted": False})
    assert (status, answer["error"]["code"]) == (403, "permission_denied")
    assert ben.post("/v1/security/gdpr/consent/check", asked)[0] == 403
    assert Person(system, "cat", "chat,memory").post("/v1/security/gdpr/consent/check", {"purpose": PURPOSE})[0] == 403
    # The key with every permission may, within the tenant it names.
    admin = {"Authorization": f"Bearer {ADMIN}", "X-Tenant-ID": "north"}
    assert system.call("POST", "/v1/security/gdpr/consent/check", asked, admin)[1]["has_consent"] is True
    system.stop()
    system.start()
    assert ann.post("/v1/security/gdpr/consent/check", asked)[1]["has_consent"] is True
    events = system.cli("audit", "tail", "--tenant", "north", "--json").stdout.splitlines()
    found = [json.loads(line) for line in events]
    recorded = [one for one in found if (one["event_type"], one["outcome"]) == ("consent.record", "ok")]
    assert [one["details"] for one in recorded] == ["granted", "withdrawn", "granted"]
    assert {(one["user_id"], one["resource"]) for one in recorded} == {("alice_001", f"consent/{PURPOSE}")}
    denied = [one for one in found if (one["event_type"], one["outcome"]) == ("consent.record", "denied")]
    assert [one["user_id"] for one in denied] == ["alice_001"]


def test_memory_when_consent_is_withdrawn_then_nothing_is_kept_or_recalled_until_it_is_given_again(
    system: System, upstream: UpstreamProcess
) -> None:
    dan = Person(system, "dan")
    status, added, _ = dan.post("/v1/memory/add", {"role": "user", "content": SAID, "event_id": "e1"})
    assert status == 200
    status, noted, _ = dan.post("/v1/memories", {"content": "Answer in Dutch.", "memory_type": "rule"})
    assert status == 200
    segment = {"summary": "Bees were talked about.", "tags": ["bees"]}
    assert dan.post("/v1/memory/manage/import", {"segments": [segment]})[0] == 200
    exported = dan.post("/v1/memory/manage/export", {})[1]
    segment_id = exported["data"]["segments"][0]["id"]
    _, headers = dan.chat()
    assert int(headers["X-MemoryOS-Memories"]) >= 1
    assert headers["X-MemoryOS-Reason"] is None
    assert dan.retrieve()["episodes"]
    assert "withheld" not in dan.retrieve()

    until(lambda: dan.call("GET", "/v1/memory/events/e1")[1]["state"] == "stored")

    dan.decide(False)

    note = noted["data"]["id"]
    writes: list[tuple[str, str, Any]] = [
        ("POST", "/v1/memory/add", {"role": "user", "content": "I moved to Faro."}),
        ("POST", "/v1/memory/add", {"role": "user", "content": SAID, "event_id": "e1"}),
        ("POST", "/v1/memory/manage/import", {"segments": [segment | {"summary": "Honey was talked about."}]}),
        ("POST", "/v1/memory/manage/tags", {"segment_id": segment_id, "tags": ["honey"]}),
        ("POST", "/v1/memories", {"content": "I moved to Faro.", "memory_type": "fact"}),
        ("PATCH", f"/v1/memories/{note}", {"content": "Answer in Danish."}),
        ("POST", "/v1/memories/extract", {"text": "I live in Faro and work as a baker."}),
    ]
    for verb, path, body in writes:
        status, answer, _ = dan.call(verb, path, body)
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (403, "consent_withdrawn", "Forbidden"), (
            path
        )

    found = dan.retrieve()
    assert found["withheld"] == "consent_withdrawn"
    assert not (found["episodes"])
    assert not (found["short_term"])
    assert not (found["mid_term"])
    assert found["long_term"]["profile"] == ""
    assert found["long_term"]["knowledge"] == []
    for memory in ("", "read", "write"):
        answer, headers = dan.chat(**({"X-MemoryOS-Memory": memory} if memory else {}))
        assert headers["X-MemoryOS-Remembered"] == "false"
        assert headers["X-MemoryOS-Reason"] == "consent_withdrawn"
        assert headers["X-MemoryOS-Memories"] == "0"
        assert answer["memoryos"]["reason"] == "consent_withdrawn"
        sent = json.dumps(upstream.requests()[-1])
        assert "Ingrid" not in sent
        assert "Dutch" not in sent
    _, headers = dan.chat(stream=True)
    assert headers["X-MemoryOS-Remembered"] == "false"
    assert headers["X-MemoryOS-Reason"] == "consent_withdrawn"
    assert "Ingrid" not in json.dumps(upstream.requests()[-1])

    # Reading one's own, and taking it away, goes on.
    kept = dan.post("/v1/memory/manage/export", {})[1]["data"]["segments"]
    assert [(one["id"], one["tags"], one["version"]) for one in kept] == [(segment_id, ["bees"], 1)]
    assert dan.call("GET", "/v1/memories")[1]["data"]["total"] == 1
    assert dan.call("GET", "/v1/memory/events/e1")[1]["state"] == "stored"
    assert dan.call("GET", f"/v1/memory/{added['memory_id']}/history")[0] == 200
    assert dan.call("DELETE", f"/v1/memories/{note}")[0] == 200
    # Nobody else's decision, and no other purpose.
    eve = Person(system, "eve")
    eve.decide(False, "analytics")
    assert eve.post("/v1/memory/add", {"role": "user", "content": SAID})[0] == 200

    dan.decide(True)
    assert SAID in {one["content"] for one in dan.retrieve()["episodes"]}
    _, headers = dan.chat()
    assert int(headers["X-MemoryOS-Memories"]) >= 1
    assert headers["X-MemoryOS-Remembered"] == "true"
    assert "Ingrid" in json.dumps(upstream.requests()[-1])


def test_withdrawal_when_there_is_nothing_of_the_user_yet_then_it_holds(system: System) -> None:
    fay = Person(system, "fay")
    fay.decide(False)
    _, headers = fay.chat()
    assert headers["X-MemoryOS-Reason"] == "consent_withdrawn"
    assert fay.post("/v1/memory/add", {"role": "user", "content": SAID})[0] == 403
    system.kill()
    system.start()
    assert fay.post("/v1/memory/add", {"role": "user", "content": SAID})[0] == 403


def test_withdrawal_when_the_store_hangs_then_nobody_unknown_gets_memory_and_the_chat_answers(
    system: System, upstream: UpstreamProcess
) -> None:
    gus = Person(system, "gus")
    gus.chat()  # the key is known, and so is the user
    assert gus.post("/v1/memory/add", {"role": "user", "content": SAID})[0] == 200
    gus.decide(False)
    assert gus.chat()[1]["X-MemoryOS-Reason"] == "consent_withdrawn"
    with system.frozen("valkey"):
        until(lambda: gus.chat()[1]["X-MemoryOS-Status"] == "degraded")
        _, headers = gus.chat()
        assert headers["X-MemoryOS-Remembered"] == "false"
        assert headers["X-MemoryOS-Memories"] == "0"
        assert "Ingrid" not in json.dumps(upstream.requests()[-1])
    system.wait_ready()


def test_client_when_consent_is_withdrawn_then_it_is_told_why(system: System) -> None:
    hal = Person(system, "hal")
    key = hal.head["Authorization"].removeprefix("Bearer ")
    with memoryos.Client(system.grpc, api_key=key) as client:
        client.add(SAID)
        assert client.retrieve("bees").withheld == ""
        hal.decide(False)
        found = client.retrieve("bees")
        assert (found.withheld, found.episodes) == ("consent_withdrawn", ())
        with pytest.raises(errors.PermissionDenied) as refused:
            client.add(SAID)
        assert refused.value.reason == "consent_withdrawn"


def test_consent_when_it_is_required_then_nobody_is_remembered_without_it(tmp_path: Path) -> None:
    with System(tmp_path, {"MEMORYOS_CONSENT__REQUIRED": "true"}) as system:
        asked = {"user_id": "ann", "role": "user", "content": SAID}
        assert system.post("/v1/memory/add", asked)[1]["error"]["code"] == "consent_withdrawn"
        found = system.post("/v1/memory/retrieve", {"user_id": "ann", "query": "bees"})[1]
        assert found["withheld"] == "consent_withdrawn"
        consent = {"user_id": "ann", "purpose": PURPOSE}
        assert system.post("/v1/security/gdpr/consent", consent | {"granted": True})[0] == 200
        assert system.post("/v1/memory/add", asked)[0] == 200
        assert system.post("/v1/memory/add", asked | {"user_id": "ben"})[0] == 403
