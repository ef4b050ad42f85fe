"""Four keys, two tenants with two users each: nobody reaches anything of anybody else, over REST and gRPC."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memoryos
from memoryos import errors
from tests.system import System

ADMIN = "admin-key-of-a-test-0123456789"
PEOPLE = [("north", "ann"), ("north", "ben"), ("south", "ann"), ("south", "ben")]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    home: Path = tmp_path_factory.mktemp("tenants")
    env = {"MEMORYOS_AUTH__ENABLED": "true", "MEMORYOS_AUTH__ADMIN_KEY": ADMIN}
    with System(home, env) as running:
        yield running


@pytest.fixture(scope="module")
def keys(system: System) -> dict[tuple[str, str], str]:
    made = {}
    for tenant, user in PEOPLE:
        out = system.cli(
            "keys", "create", "--user", user, "--tenant", tenant, "--permissions", "chat,memory", "--json"
        ).stdout
        made[tenant, user] = json.loads(out)["api_key"]
    return made


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


@pytest.fixture(scope="module")
def told(system: System, keys: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    ids = {}
    for (tenant, user), key in keys.items():
        status, answer, _ = system.call(
            "POST",
            "/v1/memory/add",
            {
                "role": "user",
                "content": f"The password of {tenant} {user} is swordfish-{tenant}-{user}",
                "event_id": "same-id",
            },
            bearer(key),
        )
        assert status == 200, answer
        ids[tenant, user] = answer["memory_id"]
    assert len(set(ids.values())) == 4
    return ids


@pytest.mark.parametrize("me", PEOPLE)
def test_rest_when_asking_for_others_then_nothing_of_theirs(
    system: System, keys: dict[tuple[str, str], str], told: dict[tuple[str, str], str], me: tuple[str, str]
) -> None:
    key = keys[me]
    own = f"swordfish-{me[0]}-{me[1]}"
    for path, body in (
        ("/v1/memory/retrieve", {"query": "password swordfish"}),
        (
            "/v1/chat/completions",
            {"model": "memoryos/recall", "messages": [{"role": "user", "content": "What is the password?"}]},
        ),
    ):
        status, answer, _ = system.call("POST", path, body, bearer(key))
        text = json.dumps(answer)
        assert status == 200
        assert own in text
        assert text.replace(own, "").count("swordfish-") == 0
    for other, memory_id in told.items():
        status, answer, _ = system.get(f"/v1/memory/{memory_id}/history", bearer(key))
        assert status == (200 if other == me else 404)
        if other[1] != me[1]:
            for body_user, headers in ((other[1], {}), (None, {"X-User-ID": other[1]})):
                body: dict[str, Any] = {"query": "password"} | ({"user_id": body_user} if body_user else {})
                status, answer, _ = system.call("POST", "/v1/memory/retrieve", body, bearer(key, **headers))
                assert status == 403
                assert "act_as" in answer["error"]["message"]
        if other[0] != me[0]:
            status, answer, _ = system.call(
                "POST", "/v1/memory/retrieve", {"query": "password"}, bearer(key, **{"X-Tenant-ID": other[0]})
            )
            assert (status, answer["error"]["type"]) == (403, "Forbidden")


@pytest.mark.parametrize("me", PEOPLE)
def test_grpc_when_asking_for_others_then_nothing_of_theirs(
    system: System, keys: dict[tuple[str, str], str], told: dict[tuple[str, str], str], me: tuple[str, str]
) -> None:
    with memoryos.Client(system.grpc, api_key=keys[me]) as client:
        found = client.retrieve("password swordfish")
        own = f"swordfish-{me[0]}-{me[1]}"
        assert found.episodes[0].event_id == "same-id"
        text = " ".join(episode.content for episode in found.episodes)
        assert own in text
        assert "swordfish-" not in text.replace(own, "")
        for other, memory_id in told.items():
            if other == me:
                assert client.history(memory_id)
            else:
                with pytest.raises(errors.NotFound):
                    client.history(memory_id)
            if other[1] != me[1]:
                with pytest.raises(errors.PermissionDenied, match="act_as"):
                    client.retrieve("password", user_id=other[1])
    for other in PEOPLE:
        if other[0] != me[0]:
            with (
                memoryos.Client(system.grpc, api_key=keys[me], tenant_id=other[0]) as stranger,
                pytest.raises(errors.PermissionDenied),
            ):
                stranger.retrieve("password")


def test_keys_when_missing_wrong_or_short_of_permission_then_told(
    system: System, keys: dict[tuple[str, str], str]
) -> None:
    body = {"query": "x"}
    status, answer, _ = system.post("/v1/memory/retrieve", body)
    assert (status, answer["error"]["type"]) == (401, "Unauthorized")
    status, _, _ = system.call("POST", "/v1/memory/retrieve", body, bearer("nobody-knows-this-key"))
    assert status == 401
    only_chat = json.loads(
        system.cli("keys", "create", "--user", "cleo", "--tenant", "north", "--permissions", "chat", "--json").stdout
    )
    status, answer, _ = system.call("POST", "/v1/memory/retrieve", body, bearer(only_chat["api_key"]))
    assert (status, answer["error"]["type"]) == (403, "Forbidden")
    assert system.get("/health")[0] == 200
    assert only_chat["id"] in system.cli("keys", "list").stdout
    assert only_chat["api_key"] not in system.cli("keys", "list").stdout
    system.cli("keys", "revoke", only_chat["id"])
    status, _, _ = system.call("GET", "/v1/models", None, bearer(only_chat["api_key"]))
    assert status == 401
    log = (system.home / "server.log").read_text() + (system.home / "bridge.log").read_text()
    assert all(key not in log for key in (*keys.values(), ADMIN))


def test_audit_tail_when_calls_were_made_then_lists_them_without_content(
    system: System, keys: dict[tuple[str, str], str], told: dict[tuple[str, str], str]
) -> None:
    system.call("POST", "/v1/memory/retrieve", {"query": "nothing"}, {"Authorization": "Bearer wrong-key-of-a-test"})

    time.sleep(1.5)
    events = [json.loads(line) for line in system.cli("audit", "tail", "--json", "--limit", "500").stdout.splitlines()]
    kinds = {(e["event_type"], e["outcome"]) for e in events}
    assert ("memory.add", "ok") in kinds
    assert ("key.create", "ok") in kinds
    assert ("memory.retrieve", "denied") in kinds
    assert {"north", "south", "_system"} <= {e["tenant_id"] for e in events}
    added = [e for e in events if e["event_type"] == "memory.add" and e["tenant_id"] == "north"]
    assert {e["user_id"] for e in added} == {"ann", "ben"}
    assert "swordfish" not in json.dumps(events)
