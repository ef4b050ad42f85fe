"""What was recorded, through server and bridge: who sees what, that it is chained and proved, also after a kill and a restore."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system import System, until

ADMIN = "admin-key-of-a-test-0123456789"
LOGS = "/v1/security/audit/logs"
CHAINED_SECONDS = 1.5
"""Reads are recorded within a second of happening."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    env = {
        "MEMORYOS_AUTH__ENABLED": "true",
        "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
        "MEMORYOS_EMBEDDING__MODEL": "none",
    }
    with System(tmp_path_factory.mktemp("audit"), env) as running:
        yield running


def made(system: System, tenant: str, user: str, permissions: str) -> str:
    asked = ("keys", "create", "--user", user, "--tenant", tenant, "--permissions", permissions, "--json")
    return str(json.loads(system.cli(*asked).stdout)["api_key"])


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


def logs(system: System, key: str, body: Any, **more: str) -> Any:
    status, answer, _ = system.call("POST", LOGS, body, bearer(key, **more))
    assert status == 200, answer
    assert answer["count"] == len(answer["events"])
    return answer["events"]


def verified(system: System, *more: str, code: int = 0) -> list[Any]:
    done = system.cli("audit", "verify", "--json", *more, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_logs_when_several_people_and_tenants_act_then_each_sees_what_is_theirs(guarded: System) -> None:
    ann = made(guarded, "acme", "ann", "memory,security")
    bob = made(guarded, "acme", "bob", "memory,security")
    boss = made(guarded, "acme", "boss", "admin")
    outsider = made(guarded, "north", "ann", "admin")
    plain = made(guarded, "acme", "carl", "memory")
    for key, user in ((ann, "ann"), (bob, "bob"), (outsider, "ann")):
        said = {"user_id": user, "role": "user", "content": "I keep bees."}
        assert guarded.call("POST", "/v1/memory/add", said, bearer(key))[0] == 200
        guarded.call("POST", "/v1/memory/retrieve", {"user_id": user, "query": "bees"}, bearer(key))
    assert guarded.call("POST", "/v1/memory/retrieve", {"user_id": "bob", "query": "bees"}, bearer(ann))[0] == 403
    guarded.call("GET", "/v1/memory/sessions", None, bearer("no-such-key-0123456789"))
    time.sleep(CHAINED_SECONDS)

    mine = logs(guarded, ann, {"user_id": "ann"})
    kinds = [one["event_type"] for one in mine]
    assert kinds[:2] == ["memory.retrieve", "memory.add"]
    assert {one["user_id"] for one in mine} == {"ann"}
    assert {one["ip_address"] for one in mine if one["event_type"].startswith("memory")} == {"127.0.0.1"}
    assert mine == sorted(mine, key=lambda one: one["timestamp"], reverse=True)
    assert logs(guarded, ann, {"user_id": "ann", "event_type": "memory.add"})[0]["action"] == "AddMemory"
    everybody = logs(guarded, boss, {"limit": 1000})
    assert {"ann", "bob"} <= {one["user_id"] for one in everybody}
    (denied,) = [one for one in everybody if one["outcome"] == "denied"]
    assert (denied["event_type"], denied["user_id"], denied["details"]) == (
        "memory.retrieve",
        "bob",
        "permission_denied",
    )
    theirs = logs(guarded, outsider, {})
    assert {one["id"] for one in theirs} & {one["id"] for one in everybody} == set()
    (unknown,) = logs(guarded, ADMIN, {"tenant_id": "_system", "event_type": "auth.failed"})
    assert (unknown["outcome"], unknown["ip_address"], unknown["action"]) == ("denied", "127.0.0.1", "ListSessions")
    assert "bees" not in json.dumps(everybody + theirs)

    for key, body, status, param in (
        (ann, {}, 403, "user_id"),
        (ann, {"user_id": "bob"}, 403, "user_id"),
        (plain, {"user_id": "carl"}, 403, None),
        (boss, {"tenant_id": "_system"}, 403, "tenant_id"),
        (boss, {"tenant_id": "north"}, 403, "tenant_id"),
        (boss, {"limit": 0}, 400, "limit"),
        (boss, {"limit": 1001}, 400, "limit"),
        (boss, {"event_type": "no type"}, 400, "event_type"),
        (boss, {"before": "yesterday"}, 400, "before"),
        (boss, {"after": "2026-01-02T00:00:00Z", "before": "2026-01-01T00:00:00Z"}, 400, "after"),
        (boss, {"page_token": "?"}, 400, "page_token"),
        (boss, {"colour": "blue"}, 400, "colour"),
    ):
        got, answer, _ = guarded.call("POST", LOGS, body, bearer(key))
        assert (got, answer["error"]["param"]) == (status, param), (body, answer)

    seen: list[str] = []
    body: dict[str, Any] = {"limit": 3, "before": everybody[0]["timestamp"]}
    while True:
        status, page, _ = guarded.call("POST", LOGS, body, bearer(boss))
        assert status == 200, page
        seen += [one["id"] for one in page["events"]]
        if not page.get("next_page_token"):
            break
        body["page_token"] = page["next_page_token"]
    assert sorted(seen) == sorted(one["id"] for one in everybody[1:])


@pytest.mark.embedded("the events of live stores stay in them")
def test_stats_when_events_are_archived_then_the_total_stays_true_and_all_verifies(guarded: System) -> None:
    key = made(guarded, "count", "ann", "memory,security")

    def total() -> int:
        status, answer, _ = guarded.call("GET", "/v1/security/audit/stats", None, bearer(key))
        assert status == 200, answer
        assert answer["status"] == "ok"
        return int(answer["total_events"])

    assert total() == 2  # its key: intent and outcome
    for number in range(4):
        said = {"user_id": "ann", "role": "user", "content": f"number {number}"}
        assert guarded.call("POST", "/v1/memory/add", said, bearer(key))[0] == 200
    time.sleep(CHAINED_SECONDS)
    assert total() == 7  # and the first look
    time.sleep(CHAINED_SECONDS)
    assert json.loads(guarded.cli("archive", "run", "--days", "0", "--json").stdout)["moved"] >= 8
    assert total() == 8
    assert [one["event_type"] for one in logs(guarded, key, {"user_id": "ann", "event_type": "memory.add"})] == [
        "memory.add"
    ] * 4
    (summary,) = verified(guarded)
    assert (summary["problems"], summary["unsigned"]) == (0, [])
    assert summary["archived"] >= 8
    (one,) = verified(guarded, "--tenant", "count")
    assert (one["tenants"], one["archived"]) == (1, 8)


def add(system: System, user: str, number: int) -> None:
    said = {"user_id": user, "role": "user", "content": f"number {number}", "event_id": f"e{number}"}
    assert system.post("/v1/memory/add", said)[0] == 200


def test_chain_when_the_server_is_killed_again_and_again_then_each_change_is_recorded_once(tmp_path: Path) -> None:
    with System(tmp_path, {"MEMORYOS_EMBEDDING__MODEL": "none"}) as system:
        for life, point in enumerate(("audit.taken", "audit.chained", "audit.taken:2", "")):
            system.kill()
            system.env["MEMORYOS_FAULT_POINT"] = point
            system.start(wait=False)
            system.wait_port(system.http)
            number = 0
            while system.server is not None and system.server.poll() is None and number < 5:
                said = {"user_id": "ann", "role": "user", "content": f"life {life}", "event_id": f"{life}-{number}"}
                number += system.post("/v1/memory/add", said)[0] == 200
                time.sleep(0.4 if point else 0)
        system.env["MEMORYOS_FAULT_POINT"] = ""
        time.sleep(CHAINED_SECONDS)
        events = system.post(LOGS, {"event_type": "memory.add", "limit": 1000})[1]["events"]
        # A call whose answer was lost may have been recorded; what was answered was, and nothing twice.
        assert len({one["id"] for one in events}) == len(events)
        assert sum(one["outcome"] == "ok" for one in events) >= 5
        assert verified(system)[-1]["problems"] == 0
        system.stop()
        assert verified(system)[-1]["problems"] == 0  # by the stores themselves


@pytest.mark.parametrize("seconds", ["0.0001", "0.15"])
def test_chats_when_their_turns_are_kept_after_the_answer_then_each_is_recorded_once(
    tmp_path: Path, seconds: str
) -> None:
    env = {"MEMORYOS_EMBEDDING__MODEL": "none", "MEMORYOS_MEMORY__REMEMBER_DEADLINE_SECONDS": seconds}
    with System(tmp_path, env) as system:
        for number in range(12):
            asked = {"model": "memoryos/recall", "messages": [{"role": "user", "content": f"My locker is {number}."}]}
            status, answer, _ = system.call("POST", "/v1/chat/completions", asked, {"X-User-ID": f"u{number % 5}"})
            assert status == 200, answer
        time.sleep(CHAINED_SECONDS)
        chats = system.post(LOGS, {"event_type": "chat.completion", "limit": 1000})[1]["events"]
        assert len(chats) == len({one["request_id"] for one in chats}) == 12
        assert verified(system)[-1]["problems"] == 0


@pytest.mark.embedded("live stores are backed up where they run")
def test_backup_when_restored_over_a_longer_chain_then_it_verifies_and_goes_on(system: System, tmp_path: Path) -> None:
    for number in range(5):
        add(system, "ann", number)
    system.cli("archive", "run", "--days", "0")
    add(system, "ann", 5)
    system.cli("backup", "--to", str(tmp_path / "kept"))
    for number in range(6, 12):
        add(system, "ann", number)
    time.sleep(CHAINED_SECONDS)
    before = verified(system)[-1]["events"]
    system.stop()
    system.cli("restore", "--from", str(tmp_path / "kept"), "--force")
    summary = verified(system)[-1]
    assert summary["problems"] == 0
    assert summary["archived"] >= 5
    assert summary["events"] < before
    system.start()
    add(system, "ann", 99)
    until(lambda: any(one["details"] == "" for one in system.post(LOGS, {"event_type": "memory.add"})[1]["events"]))
    (summary,) = verified(system)
    assert (summary["problems"], summary["unsigned"]) == (0, [])


@pytest.mark.embedded("the events of live stores stay in them")
def test_verify_when_the_archive_was_tampered_with_then_exits_with_1_and_names_tenant_and_place(
    system: System, tmp_path: Path
) -> None:
    for number in range(5):
        add(system, "ann", number)
    system.cli("archive", "run", "--days", "0")
    path = next((system.data / "archive" / "audit").glob("*.archive"))
    whole = path.read_bytes()
    at = whole.index(b"AddMemory")
    path.write_bytes(whole[:at] + b"addMemory" + whole[at + 9 :])
    *problems, summary = verified(system, code=1)
    assert summary["problems"] == len(problems) >= 1
    assert {one["tenant_id"] for one in problems} == {"default"}
    assert any(str(path) in one["place"] and one["number"] for one in problems)
    shown = system.cli("audit", "verify", check=False)
    assert "NOT intact" in shown.stdout
    assert "not as it was written" in shown.stderr
    path.write_bytes(whole)
    assert verified(system)[-1]["problems"] == 0
