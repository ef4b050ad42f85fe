"""Whose data may be handed over and erased by whom, and what the audit says of somebody who was erased."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.journeys.privacy_support import add, bearer, certificate, delete, export, ok
from tests.system import System, until

ADMIN = "admin-key-of-a-test-0123456789"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with keys."""
    env = {"MEMORYOS_AUTH__ENABLED": "true", "MEMORYOS_AUTH__ADMIN_KEY": ADMIN}
    with System(tmp_path_factory.mktemp("guarded"), env) as running:
        yield running


def key_of(system: System, user: str, permissions: str, tenant: str = "acme") -> str:
    asked = ("keys", "create", "--user", user, "--tenant", tenant, "--permissions", permissions, "--json")
    return str(json.loads(system.cli(*asked).stdout)["api_key"])


def test_rights_when_keys_differ_then_security_is_for_oneself_and_admin_for_others(guarded: System) -> None:
    ann, acting = key_of(guarded, "ann", "memory,security"), key_of(guarded, "app", "memory,security,act_as")
    plain, boss = key_of(guarded, "ann", "memory"), key_of(guarded, "boss", "admin")
    stranger = key_of(guarded, "cat", "memory,security", "other")
    add(guarded, "ann", "I live in Porto", bearer(ann))
    add(guarded, "ann", "I live in Rome", bearer(ADMIN, **{"X-Tenant-ID": "other"}))
    for path in ("/v1/security/gdpr/export", "/v1/security/gdpr/delete"):
        assert guarded.post(path, {"user_id": "ann"}, bearer(plain))[0] == 403
        for other in (acting, key_of(guarded, "bob", "security")):
            code, answer, _ = guarded.post(path, {"user_id": "ann"}, bearer(other))
            assert (code, "admin" in answer["error"]["message"]) == (403, True)
        assert guarded.post(path, {"user_id": "ann"}, bearer(stranger))[0] == 403
    assert len(export(guarded, "ann", bearer(ann))["keys"]) == 2
    assert len(export(guarded, "ann", bearer(boss))["episodes"]) == 1
    made = delete(guarded, "ann", bearer(ann))
    assert made["status"] == "ok"
    # Her keys ended with her; that which acts for others, and another tenant's user of the same id, are as before.
    assert guarded.post("/v1/security/gdpr/export", {"user_id": "ann"}, bearer(ann))[0] == 401
    assert guarded.post("/v1/memory/retrieve", {"user_id": "ann", "query": "x"}, bearer(plain))[0] == 401
    assert guarded.post("/v1/memory/retrieve", {"user_id": "ann", "query": "x"}, bearer(acting))[0] == 200
    theirs = export(guarded, "ann", bearer(ADMIN, **{"X-Tenant-ID": "other"}))
    assert [one["content"] for one in theirs["episodes"]] == ["I live in Rome"]
    path = f"/v1/security/gdpr/certificates/{made['certificate_id']}"
    assert certificate(guarded, made, bearer(boss))["status"] == "ok"
    for other in (acting, stranger):
        assert guarded.get(path, bearer(other))[0] == 404
    again = key_of(guarded, "ann", "security")
    assert certificate(guarded, made, bearer(again))["status"] == "ok"
    assert guarded.get("/v1/security/gdpr/certificates/nothing", bearer(boss))[0] == 404

    def outcomes() -> list[str]:
        tail = guarded.cli("audit", "tail", "--limit", "500", "--json").stdout.splitlines()
        return [event["outcome"] for event in map(json.loads, tail) if event["event_type"] == "gdpr.delete"]

    until(lambda: outcomes()[-2:] == ["intent", "ok"])
    assert "denied" in outcomes()


def test_audit_when_somebody_was_erased_then_the_name_leads_to_who_has_it_now_and_to_the_erasure(
    guarded: System,
) -> None:
    boss, zed = key_of(guarded, "boss", "admin"), key_of(guarded, "zed", "memory,security")

    def seen(key: str) -> tuple[list[str], ...]:
        asked = {"user_id": "zed", "limit": 1000}
        logs = ok(guarded.post("/v1/security/audit/logs", asked, bearer(key)))["events"]
        named = [logs, export(guarded, "zed", bearer(key))["audit"]]
        assert all(one["user_id"] == "zed" for events in named for one in events)
        return tuple(sorted({one["event_type"] for one in events} - {"gdpr.export", "audit.logs"}) for events in named)

    add(guarded, "zed", "I live in Porto", bearer(zed))
    until(lambda: seen(boss) == (["key.create", "memory.add"],) * 2 and seen(zed) == seen(boss))
    ok(guarded.post("/v1/memory/retrieve", {"user_id": "zed", "query": "Porto"}, bearer(zed)))  # recorded late
    made = delete(guarded, "zed", bearer(zed))
    time.sleep(1.0)
    # The key was made before anything was kept of her: of somebody unknown, whom no erasure is about.
    until(lambda: seen(boss) == (["gdpr.delete", "key.create", "key.revoke"],) * 2)
    asked = {"user_id": "zed", "event_type": "gdpr.delete"}
    found = ok(guarded.post("/v1/security/audit/logs", asked, bearer(boss)))["events"]
    resource = f"erasure/{made['certificate_id']}"
    assert [(one["outcome"], one["resource"]) for one in found] == [("ok", resource), ("intent", resource)]
    again = key_of(guarded, "zed", "memory,security")
    ok(guarded.post("/v1/memory/retrieve", {"user_id": "zed", "query": "Porto"}, bearer(again)))
    for key in (again, boss):
        assert not any("memory.add" in names for names in seen(key))
    since = time.time()
    add(guarded, "zed", "I live in Rome", bearer(again))
    for key in (again, boss):
        until(lambda key=key: all("memory.add" in names for names in seen(key)))
        told = ok(guarded.post("/v1/security/audit/logs", {**asked, "event_type": "memory.add"}, bearer(key)))["events"]
        assert [datetime.fromisoformat(one["timestamp"]).timestamp() >= since for one in told] == [True]


def test_delete_when_the_user_is_an_administrator_then_the_key_stays(guarded: System) -> None:
    boss = key_of(guarded, "chief", "admin", "acme")
    assert delete(guarded, "chief", bearer(boss))["status"] == "ok"
    assert len(export(guarded, "chief", bearer(boss))["keys"]) == 1


def test_delete_when_the_user_has_keys_of_all_tenants_then_they_end_if_who_asks_reaches_them(guarded: System) -> None:
    hers, acting = key_of(guarded, "eve", "memory,security", "*"), key_of(guarded, "eve", "memory,act_as", "*")
    other, boss = key_of(guarded, "eva", "memory", "*"), key_of(guarded, "lead", "admin", "acme")

    def is_alive(key: str) -> bool:
        asked = guarded.post("/v1/memory/retrieve", {"query": "x"}, bearer(key, **{"X-Tenant-ID": "acme"}))
        assert asked[0] in (200, 401), asked
        return asked[0] == 200

    # Of one tenant only: what reaches further is not his to end.
    assert delete(guarded, "eve", bearer(boss))["status"] == "ok"
    assert (is_alive(hers), is_alive(acting)) == (True, True)
    assert delete(guarded, "eve", bearer(ADMIN, **{"X-Tenant-ID": "acme"}))["status"] == "ok"
    assert (is_alive(hers), is_alive(acting), is_alive(other)) == (False, True, True)
    # And with a key of one's own, which ends with what it asked for.
    own = key_of(guarded, "eve", "memory,security", "*")
    assert delete(guarded, "eve", bearer(own, **{"X-Tenant-ID": "acme"}))["status"] == "ok"
    assert not is_alive(own)
    tail = [json.loads(line) for line in guarded.cli("audit", "tail", "--limit", "500", "--json").stdout.splitlines()]
    ended = [one["outcome"] for one in tail if one["event_type"] == "key.revoke" and one["tenant_id"] == "_system"]
    assert ended == ["intent", "ok"] * 2
