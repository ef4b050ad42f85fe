"""API keys through server and bridge: made, listed, rotated, deleted; whose they are; and where a key must never stand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.replicas import Replicas
from tests.system import System, until

QUICK = {"MEMORYOS_EMBEDDING__MODEL": "none", "MEMORYOS_AUTH__ENABLED": "true"}
CHOSEN = "a-key-that-somebody-chose"


def first_key(system: System) -> tuple[str, str]:
    """The first admin key, made by the operator while nothing runs, and its id."""
    made = json.loads(system.cli("keys", "create", "--admin", "--json").stdout)
    return made["api_key"], made["id"]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    running = System(tmp_path_factory.mktemp("keys"), QUICK)
    running.env["ADMIN"], running.env["ADMIN_ID"] = first_key(running)
    with running:
        yield running


def ask(
    system: System, verb: str, path: str, body: Any = None, *, key: str = "", **headers: str
) -> tuple[int, dict[str, Any]]:
    """Status and answer of a call with a key, by default the first admin's."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    bearer = {"Authorization": f"Bearer {key or system.env['ADMIN']}"}
    status, answer, _ = system.call(verb, path, body, bearer | names)
    return status, answer


def made(system: System, **fields: Any) -> dict[str, Any]:
    """A new key, by default of the tenant north."""
    body = {"user_id": "ann", "permissions": ["memory"], "tenant_id": "north"} | fields
    status, answer = ask(system, "POST", "/v1/admin/keys", body)
    assert status == 200, answer
    return answer


def works(system: System, key: str) -> bool:
    """Whether a key opens what needs `memory`."""
    status, answer = ask(system, "GET", "/v1/memory/sessions", key=key)
    assert status in (200, 401), answer
    return status == 200


def test_key_when_made_then_it_works_and_is_shown_only_once(system: System) -> None:
    ends = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    body = {
        "api_key": CHOSEN,
        "user_id": "ann",
        "description": "for the robot",
        "permissions": ["chat", "memory"],
        "expires_at": ends.isoformat(),
        "requests_per_minute": 60,
        "tokens_per_day": 5_000_000_000,
    }
    status, answer = ask(system, "POST", "/v1/admin/keys", body)
    assert (status, answer["api_key"], answer["message"]) == (200, CHOSEN, "API Key created successfully")
    assert works(system, CHOSEN)
    status, listed = ask(system, "GET", "/v1/admin/keys?user_id=ann")
    (shown,) = listed["keys"]
    assert shown["last_used_at"] > shown["created_at"]
    assert shown == answer["key"] | {"last_used_at": shown["last_used_at"]}
    assert (shown["id"], shown["tenant_id"], shown["permissions"]) == (answer["id"], "default", ["chat", "memory"])
    assert (shown["requests_per_minute"], shown["tokens_per_day"]) == (60, 5_000_000_000)
    assert datetime.fromisoformat(shown["expires_at"]) == ends
    assert CHOSEN not in json.dumps(listed)
    status, answer = ask(system, "POST", "/v1/admin/keys", body | {"user_id": "eve"})
    assert (status, answer["error"]["type"]) == (409, "Conflict")
    status, answer = ask(system, "DELETE", f"/v1/admin/keys/{CHOSEN}")
    assert (status, answer) == (200, {"id": shown["id"], "message": "API Key deleted successfully"})
    assert not works(system, CHOSEN)
    assert ask(system, "DELETE", f"/v1/admin/keys/{CHOSEN}")[0] == 404
    assert ask(system, "DELETE", f"/v1/admin/keys/{shown['id']}")[0] == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"permissions": []}, "permissions"),
        ({"permissions": ["memory", "everything"]}, "permissions"),
        ({"permissions": ["ADMIN"]}, "permissions"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a\u0007"}, "user_id"),
        ({"tenant_id": "a b"}, "tenant_id"),
        ({"tenant_id": "_system"}, "tenant_id"),
        ({"api_key": "too-short"}, "api_key"),
        ({"api_key": "key_0123456789abcdef"}, "api_key"),
        ({"api_key": "with a blank in it!"}, "api_key"),
        ({"description": "x" * 1001}, "description"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"tokens_per_day": 1.5}, "tokens_per_day"),
        ({"tokens_per_day": 1e13}, "tokens_per_day"),
        ({"tokens": 1}, "tokens"),
    ],
)
def test_key_when_a_field_is_wrong_then_400_names_it_and_nothing_is_made(
    system: System, fields: dict[str, Any], param: str
) -> None:
    before = ask(system, "GET", "/v1/admin/keys?tenant_id=*")[1]
    status, answer = ask(system, "POST", "/v1/admin/keys", {"user_id": "bob", "permissions": ["chat"]} | fields)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert [one["id"] for one in ask(system, "GET", "/v1/admin/keys?tenant_id=*")[1]["keys"]] == [
        one["id"] for one in before["keys"]
    ]


def test_keys_when_a_tenants_admin_asks_then_only_the_tenants_exist(system: System) -> None:
    boss = made(system, user_id="boss", permissions=["admin"])["api_key"]
    ours, theirs = made(system)["id"], made(system, tenant_id="south")["id"]
    above = system.env["ADMIN_ID"]
    status, listed = ask(system, "GET", "/v1/admin/keys", key=boss)
    assert status == 200
    assert {one["tenant_id"] for one in listed["keys"]} == {"north"}
    for name in (theirs, above, "key_ffffffffffffffff"):
        for verb, path, body in (("DELETE", "", None), ("POST", "/rotate", {})):
            status, answer = ask(system, verb, f"/v1/admin/keys/{name}{path}", body, key=boss)
            assert (status, answer["error"]["message"]) == (404, "There is no such key")
    for tenant in ("south", "*"):
        body = {"user_id": "x", "permissions": ["chat"], "tenant_id": tenant}
        assert ask(system, "POST", "/v1/admin/keys", body, key=boss)[0] == 403
        assert ask(system, "GET", f"/v1/admin/keys?tenant_id={tenant}", key=boss)[0] == 403
        assert ask(system, "GET", f"/v1/admin/users?tenant_id={tenant}", key=boss)[0] == 403
    mine = ask(system, "POST", "/v1/admin/keys", {"user_id": "x", "permissions": ["chat", "admin"]}, key=boss)
    assert (mine[0], mine[1]["key"]["tenant_id"]) == (200, "north")
    assert ask(system, "DELETE", f"/v1/admin/keys/{ours}", key=boss)[0] == 200
    assert theirs in {one["id"] for one in ask(system, "GET", "/v1/admin/keys", x_tenant_id="south")[1]["keys"]}
    assert above in {one["id"] for one in ask(system, "GET", "/v1/admin/keys?tenant_id=*")[1]["keys"]}


def test_keys_when_listed_in_pages_then_each_comes_once_oldest_first(system: System) -> None:
    ids = [made(system, tenant_id="pages", user_id=f"u{number}")["id"] for number in range(7)]
    found: list[str] = []
    token, pages = "", 0
    while token or not pages:
        path = f"/v1/admin/keys?page_size=3&page_token={token}"
        answer = ask(system, "GET", path, x_tenant_id="pages")[1]
        found += [one["id"] for one in answer["keys"]]
        token, pages = answer["next_page_token"], pages + 1
    assert (found, pages) == (ids, 3)
    for bad in ("x", "W10", "WyJhIl0"):
        status, answer = ask(system, "GET", f"/v1/admin/keys?page_token={bad}")
        assert (status, answer["error"]["param"]) == (400, "page_token")


def test_key_when_rotated_then_both_work_for_the_overlap_and_then_the_new_one(system: System) -> None:
    old = made(system, permissions=["memory", "act_as"], description="the robot's")
    status, new = ask(system, "POST", f"/v1/admin/keys/{old['id']}/rotate", {"overlap_seconds": 2})
    assert status == 200, new
    assert (new["old_id"], new["message"]) == (old["id"], "API Key rotated successfully")
    same = ("user_id", "tenant_id", "permissions", "description", "expires_at")
    assert {name: new["key"][name] for name in same} == {name: old["key"][name] for name in same}
    assert works(system, new["api_key"])
    ends = datetime.fromisoformat(new["old_expires_at"])
    assert timedelta() < ends - datetime.now(UTC) <= timedelta(seconds=2)
    assert works(system, old["api_key"]) or datetime.now(UTC) > ends
    until(lambda: not works(system, old["api_key"]), 10)
    assert datetime.now(UTC) >= ends
    assert works(system, new["api_key"])
    status, answer = ask(system, "POST", f"/v1/admin/keys/{old['id']}/rotate", {})
    assert (status, answer["error"]["param"]) == (400, "key")


def test_key_when_rotated_without_overlap_then_the_old_one_is_gone_at_once(system: System) -> None:
    old = made(system)
    assert works(system, old["api_key"])
    status, new = ask(system, "POST", f"/v1/admin/keys/{old['api_key']}/rotate", {"overlap_seconds": 0})
    assert status == 200, new
    assert (works(system, old["api_key"]), works(system, new["api_key"])) == (False, True)
    assert ask(system, "DELETE", f"/v1/admin/keys/{old['id']}")[0] == 404
    for seconds in (2_592_001, -1):
        status, answer = ask(system, "POST", f"/v1/admin/keys/{new['id']}/rotate", {"overlap_seconds": seconds})
        assert (status, answer["error"]["param"]) == (400, "overlap_seconds")
    shown = json.loads(system.cli("keys", "rotate", new["id"], "--json").stdout)
    assert works(system, shown["api_key"])
    left = datetime.fromisoformat(shown["old_expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(days=1)


def test_last_admin_key_when_deleted_then_409_and_it_works(system: System) -> None:
    admins = [
        one["id"]
        for one in ask(system, "GET", "/v1/admin/keys?tenant_id=*")[1]["keys"]
        if "admin" in one["permissions"] and one["id"] != system.env["ADMIN_ID"]
    ]
    for name in admins:
        assert ask(system, "DELETE", f"/v1/admin/keys/{name}")[0] == 200
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    made(system, permissions=["admin"], expires_at=soon)
    time.sleep(1)  # an administrator whose key is over is none
    status, answer = ask(system, "DELETE", f"/v1/admin/keys/{system.env['ADMIN_ID']}")
    assert (status, answer["error"]["code"]) == (409, "last_admin_key")
    assert ask(system, "GET", "/v1/admin/keys")[0] == 200


def test_users_when_listed_then_those_with_keys_and_those_with_memories(system: System) -> None:
    key = made(system, tenant_id="people", user_id="ann", permissions=["memory", "act_as"])["api_key"]
    made(system, tenant_id="people", user_id="ann")
    made(system, tenant_id="people", user_id="zoe")
    others = {f"guest-{number}" for number in range(5)}
    for name in ["ann", *others]:
        turn = {"user_id": name, "role": "user", "content": "hello"}
        assert ask(system, "POST", "/v1/memory/add", turn, key=key)[0] == 200
    found: list[dict[str, Any]] = []
    token, first = "", True
    while token or first:
        path = f"/v1/admin/users?page_size=2&page_token={token}"
        answer = ask(system, "GET", path, x_tenant_id="people")[1]
        assert len(answer["users"]) <= 2
        found += answer["users"]
        token, first = answer["next_page_token"], False
    shown = [(one["user_id"], one["key_count"], one["has_memory"]) for one in found]
    assert shown[:2] == [("ann", 2, True), ("zoe", 1, False)]
    assert len(shown) == 7
    assert set(shown[2:]) == {(name, 0, True) for name in others}
    assert (found[0]["last_used_at"] is None, found[1]["last_used_at"]) == (False, None)
    assert ask(system, "GET", "/v1/admin/users?tenant_id=*")[1]["error"]["param"] == "tenant_id"
    for size in (1, 3):
        token = ask(system, "GET", f"/v1/admin/users?page_size={size}", x_tenant_id="people")[1]["next_page_token"]
        for tenant, bad in (("people", token[:-3] + "AAA"), ("people", "x"), ("default", token)):
            status, answer = ask(system, "GET", f"/v1/admin/users?page_token={bad}", x_tenant_id=tenant)
            assert (status, answer["error"]["param"]) == (400, "page_token")


def test_key_when_kept_deleted_or_mistaken_then_it_stands_in_no_log_metric_or_record(system: System) -> None:
    secret = "a-secret-that-must-not-be-written-0001"
    for verb, path, body in (
        ("POST", "/v1/admin/keys", {"user_id": "ann", "permissions": ["memory"], "api_key": secret}),
        ("POST", "/v1/admin/keys", {"user_id": "ann", "permissions": ["memory"], "api_key": secret}),
        ("POST", "/v1/admin/keys", {"user_id": "ann", "permissions": [secret], "api_key": secret + " "}),
        ("GET", f"/v1/admin/keys/{secret}", None),
        ("POST", f"/v1/admin/keys/{secret}/rotate", {"overlap_seconds": -1}),
        ("POST", f"/v1/admin/keys/{secret}/rotate", {"overlap_seconds": 60}),
        ("POST", f"/v1/admin/keys/{secret}/rotate/more", {}),
        ("DELETE", f"/v1/admin/keys/{secret}/", None),
        ("DELETE", f"/v1/admin/keys/{secret}%FF", None),
        ("DELETE", f"/v1/admin/keys/{secret}?key={secret}", None),
        ("DELETE", f"/v1/admin/keys/{secret}", None),
        ("DELETE", f"/v1/admin/keys/{secret}", None),
    ):
        status, answer = ask(system, verb, path, body)
        assert status < 500, answer
        if status != 200:
            assert secret not in json.dumps(answer), (path, answer)
    ask(system, "GET", "/v1/memory/sessions", key=secret)
    time.sleep(1)  # refusals are recorded up to a second later
    recorded = system.cli("audit", "tail", "--limit", "500", "--json").stdout
    events = [json.loads(line) for line in recorded.splitlines()]
    for kind in ("key.create", "key.rotate", "key.revoke"):
        assert {"intent", "ok", "failed"} <= {one["outcome"] for one in events if one["event_type"] == kind}, kind
    written = [path.read_text(errors="replace") for path in system.home.glob("*.log")]
    assert "/v1/admin/keys/{key}" in "".join(written)
    for text in (*written, recorded, system.get("/metrics")[1], *map(str, system.data.glob("**/*"))):
        assert secret not in text
    assert all(secret.encode() not in system.raw(store) for store in ("valkey", "edge"))
    assert not [path for path in system.data.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_key_when_the_intent_cannot_be_written_then_503_and_nothing_is_changed(system: System) -> None:
    kept = made(system)
    with system.frozen("valkey"):
        for verb, path, body in (
            ("POST", "/v1/admin/keys", {"user_id": "ann", "permissions": ["chat"], "api_key": CHOSEN + "-2"}),
            ("DELETE", f"/v1/admin/keys/{kept['id']}", None),
            ("POST", f"/v1/admin/keys/{kept['id']}/rotate", {}),
        ):
            status, answer = ask(system, verb, path, body)
            assert (status, answer["error"]["code"]) == (503, "store_unavailable"), answer
    until(lambda: system.get("/health/status")[1]["mode"] == "ready")
    assert works(system, kept["api_key"])
    assert not works(system, CHOSEN + "-2")


@pytest.mark.timeout(180)
def test_key_when_revoked_or_ended_on_one_server_then_within_a_second_on_the_other(tmp_path: Path) -> None:
    with Replicas(tmp_path, {**QUICK, "MEMORYOS_AUTH__ADMIN_KEY": "the-admin-key-of-settings-1"}) as replicas:
        one, other = replicas.systems
        for system in replicas.systems:
            system.env["ADMIN"] = "the-admin-key-of-settings-1"
            # Its own server only, so that it is known which one is asked.
            system.env["MEMORYOS_BRIDGE__SERVER"] = system.grpc
            system.kill(bridge=True)
            system.start(wait=False)
        for system in replicas.systems:
            system.wait_ready()

        def seconds_until_refused(key: str) -> float:
            began = time.monotonic()
            until(lambda: not works(other, key), 10)
            return time.monotonic() - began

        revoked, rotated, unheard = made(one), made(one), made(one)
        for key in (revoked, rotated, unheard):
            assert works(other, key["api_key"])
        assert ask(one, "DELETE", f"/v1/admin/keys/{revoked['id']}")[0] == 200
        assert seconds_until_refused(revoked["api_key"]) < 1
        assert ask(one, "POST", f"/v1/admin/keys/{rotated['id']}/rotate", {"overlap_seconds": 0})[0] == 200
        assert seconds_until_refused(rotated["api_key"]) < 1
        for node in replicas.stores.nodes:
            node.admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        assert ask(one, "DELETE", f"/v1/admin/keys/{unheard['id']}")[0] == 200  # the other does not hear of this one
        assert seconds_until_refused(unheard["api_key"]) < 1
