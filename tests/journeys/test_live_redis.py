"""Servers on one live Valkey over TCP, each with embedded vectors of its own: what does not need the vectors shared."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.system import System
from tests.valkeys import MASTER_KEY, TcpValkey, ValkeyCluster, wait_for

TAKEN_OVER = 20.0
"""Seconds in which the partitions of a process that died are another's: a lease of 15, and some for the work."""


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[TcpValkey]:
    server = TcpValkey(tmp_path / "valkey", password="s3cret").start()
    yield server
    server.remove()


def settings(url: str, **more: str) -> dict[str, str]:
    return {
        "MEMORYOS_REDIS__URL": url,
        "MEMORYOS_SECURITY__MASTER_KEY": MASTER_KEY,
        "MEMORYOS_EMBEDDING__MODEL": "none",
        **more,
    }


@pytest.fixture
def both(tmp_path: Path, valkey: TcpValkey) -> Iterator[tuple[System, System]]:
    env = settings(valkey.url, MEMORYOS_MEMORY__PIPELINE="async")
    with System(tmp_path / "a", env) as one, System(tmp_path / "b", env) as two:
        yield one, two


def add(system: System, user: str, content: str, event_id: str, headers: Mapping[str, str] | None = None) -> Any:
    body = {"user_id": user, "role": "user", "content": content, "event_id": event_id}
    status, answer, _ = system.post("/v1/memory/add", body, headers)
    assert status == 200, answer
    return answer


def retrieve(system: System, user: str, query: str, limit: int = 10) -> Any:
    status, answer, _ = system.post("/v1/memory/retrieve", {"user_id": user, "query": query, "limit": limit})
    assert status == 200, answer
    return answer


def state(system: System, user: str, event_id: str) -> str:
    status, answer, _ = system.get(f"/v1/memory/events/{event_id}", {"X-User-ID": user})
    assert status == 200, answer
    return str(answer["state"])


def open_entries(server: TcpValkey) -> int:
    admin = server.admin
    return sum(admin.xlen(key) for key in admin.scan_iter("{p*}:queue", count=1000))


def test_start_when_no_master_key_is_set_then_fails_and_names_it(tmp_path: Path, valkey: TcpValkey) -> None:
    env = settings(valkey.url)
    del env["MEMORYOS_SECURITY__MASTER_KEY"]
    system = System(tmp_path, env)
    with pytest.raises(RuntimeError) as raised:
        system.start(bridge=False)
    assert "security.master_key" in str(raised.value)
    assert "s3cret" not in str(raised.value)
    doctor = system.cli("doctor", check=False)
    assert doctor.returncode == 1
    assert "security.master_key is not set" in doctor.stdout


def test_start_when_the_password_is_wrong_then_fails_and_doctor_says_why(tmp_path: Path, valkey: TcpValkey) -> None:
    system = System(tmp_path, settings(f"redis://:wrong@{valkey.address}"))
    with pytest.raises(RuntimeError) as raised:
        system.start(bridge=False)
    assert f"redis://{valkey.address}: The store does not let this server in" in str(raised.value)
    doctor = system.cli("doctor", check=False)
    assert "refuses the user or the password" in doctor.stdout
    assert "wrong@" not in doctor.stdout + system.cli("settings").stdout


def test_two_servers_when_one_accepts_then_the_other_shows_finds_and_orders_it(
    both: tuple[System, System], valkey: TcpValkey
) -> None:
    for number in range(10):
        accepting, asked = both[number % 2], both[1 - number % 2]
        add(accepting, "ann", f"Entry {number} of the log book", f"e{number}")
        answer = retrieve(asked, "ann", "log book entry", 20)
        assert [turn["content"] for turn in answer["short_term"]] == [
            f"Entry {n} of the log book" for n in range(number + 1)
        ]
        assert f"e{number}" in {episode["event_id"] for episode in answer["episodes"]}
    assert add(both[0], "ann", "Entry 9 of the log book", "e9")["duplicate"]
    wait_for(lambda: open_entries(valkey) == 0, what="the end of all work")
    for number in range(10):
        assert state(both[number % 2], "ann", f"e{number}") == "stored"


def test_two_servers_when_one_is_killed_half_way_then_the_other_ends_its_work_and_nothing_is_lost(
    both: tuple[System, System], valkey: TcpValkey
) -> None:
    one, two = both
    people = [f"user-{number}" for number in range(20)]
    for number in range(5):
        for who in people:
            add(one if number % 2 else two, who, f"Entry {number} of {who}", f"e{number}")
    for who in people:
        add(one, who, f"Entry 5 of {who}", "e5")  # some of it is surely open
    one.kill(group=True)
    killed = time.monotonic()
    for who in people:
        add(two, who, f"Entry 6 of {who}", "e6")
        newest = [turn["content"] for turn in retrieve(two, who, "entry")["short_term"]]
        assert newest == [f"Entry {number} of {who}" for number in range(7)]
    wait_for(lambda: open_entries(valkey) == 0, TAKEN_OVER, "taking over")
    assert time.monotonic() - killed < TAKEN_OVER
    states = {state(two, who, f"e{number}") for who in people for number in range(7)}
    assert states == {"stored"}
    one.start()  # and it comes back
    add(one, "ann", "I am back", "back")
    assert retrieve(two, "ann", "back")["short_term"][-1]["content"] == "I am back"


def test_two_servers_when_one_is_stopped_and_wakes_up_late_then_it_ends_nothing_that_is_not_its_own(
    both: tuple[System, System], valkey: TcpValkey
) -> None:
    one, _ = both
    for number in range(30):
        add(one, f"user-{number}", "I live in Oslo", "e1")
    assert one.server is not None
    one.server.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: open_entries(valkey) == 0, TAKEN_OVER, "taking over")
    finally:
        one.server.send_signal(signal.SIGCONT)
    one.wait_ready()
    for number in range(30):
        assert state(one, f"user-{number}", "e1") == "stored"
        add(one, f"user-{number}", "I moved to Rome", "e2")
    wait_for(lambda: open_entries(valkey) == 0, TAKEN_OVER, "the end of all work")
    fresh = {key: valkey.admin.lrange(key, 0, -1) for key in valkey.admin.scan_iter("{p*}:fresh:*", count=1000)}
    assert len(fresh) == 30
    assert all(len(ids) == len(set(ids)) == 2 for ids in fresh.values())


def test_two_servers_when_a_key_is_revoked_on_one_then_the_other_refuses_it_within_a_second(
    tmp_path: Path, valkey: TcpValkey
) -> None:
    admin_key = "an-admin-key-of-this-test"
    env = settings(valkey.url, MEMORYOS_AUTH__ENABLED="true", MEMORYOS_AUTH__ADMIN_KEY=admin_key)
    with System(tmp_path / "a", env) as one, System(tmp_path / "b", env) as two:
        made = one.cli("keys", "create", "--user", "ann", "--json").stdout
        key = made.partition('"api_key": "')[2].partition('"')[0]
        mine = {"Authorization": f"Bearer {key}"}
        for system in (one, two):  # now both have seen it
            add(system, "ann", "hello there", f"e-{system.grpc}", mine)
        one.cli("keys", "revoke", key)
        revoked = time.monotonic()
        while two.post("/v1/memory/retrieve", {"query": "hello"}, mine)[0] != 401:
            assert time.monotonic() - revoked < 1
            time.sleep(0.02)


def test_server_when_a_primary_of_its_cluster_is_killed_then_writes_resume(tmp_path: Path) -> None:
    cluster = ValkeyCluster(tmp_path / "c", replicas=1).start()
    try:
        with System(tmp_path / "a", settings(cluster.url)) as system:
            people = [f"user-{number}" for number in range(20)]
            for who in people:
                add(system, who, "I live in Oslo", "e1")
            victim = cluster.nodes[0]
            assert victim.admin.wait(1, 2000) == 1
            victim.kill()
            wait_for(lambda: system.get("/health/status")[1]["redis"] == "down", 10, "being seen as down")
            for who in people:
                wait_for(lambda who=who: _added(system, who), 30, "a write after the fail-over")
            wait_for(lambda: system.get("/health/status")[1]["mode"] == "ready", 10, "being ready again")
            for who in people:
                found = retrieve(system, who, "where do I live")
                assert [turn["content"] for turn in found["short_term"]] == ["I live in Oslo", "I moved to Rome"]
    finally:
        cluster.remove()


def _added(system: System, who: str) -> bool:
    body = {"user_id": who, "role": "user", "content": "I moved to Rome", "event_id": "e2"}
    status, answer, _ = system.post("/v1/memory/add", body)
    assert status in (200, 503), answer
    return bool(status == 200)
