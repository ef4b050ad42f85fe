"""Two servers and two bridges on one Valkey over TCP and one Qdrant: kills, rolling restarts, reads through either bridge."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.live_stores import cluster
from tests.replicas import Replicas, request, stop_bridge, stop_server
from tests.valkeys import wait_for

QUICK = {"MEMORYOS_EMBEDDING__MODEL": "none"}
DRAIN = {"MEMORYOS_SERVER__DRAIN_SECONDS": "1.5"}


@pytest.fixture(params=["sync", "async"])
def replicas(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Replicas]:
    with Replicas(tmp_path, {**QUICK, **DRAIN, "MEMORYOS_MEMORY__PIPELINE": request.param}) as running:
        yield running


def said(user: int, number: int) -> str:
    return f"Traveller {user} wrote that lighthouse {user * 1000 + number} has {number} steps."


def event(user: int, number: int) -> dict[str, Any]:
    content = said(user, number)
    return {"user_id": f"u{user}", "role": "user", "content": content, "event_id": f"e{number}", "session_id": "s"}


def write(
    replicas: Replicas, users: int, each: int, at_half: Callable[[], None] = lambda: None, *, first: int = 0
) -> Counter[int]:
    """Each user's events one after the other, repeated until acknowledged; how often each status was answered."""
    seen: Counter[int] = Counter()
    half = threading.Event()
    lock = threading.Lock()

    def one(user: int) -> None:
        for number in range(first, first + each):
            end = time.monotonic() + 60
            while True:
                status, answer = replicas.call("POST", "/v1/memory/add", event(user, number))
                with lock:
                    seen[status] += 1
                    if seen[200] * 2 >= users * each:
                        half.set()
                if status == 200:
                    break
                assert status in (429, 503), answer
                assert time.monotonic() < end, answer
                time.sleep(0.1)

    with ThreadPoolExecutor(16) as pool:
        writing = [pool.submit(one, user) for user in range(users)]
        assert half.wait(600)
        at_half()
        for done in writing:
            done.result()
    return seen


def check_all(replicas: Replicas, users: int, each: int) -> None:
    wait_for(lambda: replicas.stores.open_entries() == 0, 120, "the end of all work")
    events = [f"e{number}" for number in range(each)]

    def one(user: int) -> None:
        assert replicas.session(f"u{user}") == events  # none lost, none doubled, in the order in which they were said
        replicas.check_ended(f"u{user}", events)
        body = {"user_id": f"u{user}", "query": "lighthouse steps", "limit": 1000}
        status, answer = replicas.call("POST", "/v1/memory/retrieve", body)
        assert status == 200, answer
        assert sorted(episode["event_id"] for episode in answer["episodes"]) == sorted(events)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(users)))


@pytest.mark.timeout(300)
def test_events_when_a_server_is_killed_half_way_and_comes_back_then_each_is_there_once_in_order(
    replicas: Replicas,
) -> None:
    _kill_half_way(replicas, users=30, each=20)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_ten_thousand_events_when_a_server_is_killed_half_way_then_each_is_there_once_in_order(
    replicas: Replicas,
) -> None:
    _kill_half_way(replicas, users=100, each=100)


def _kill_half_way(replicas: Replicas, users: int, each: int) -> None:
    victim = replicas.systems[0]

    def kill() -> None:
        victim.kill(bridge=False)
        time.sleep(1)
        victim.start(wait=False)

    began = time.monotonic()
    seen = write(replicas, users, each, kill)
    written = time.monotonic() - began
    # A call that cannot be repeated is the client's to repeat, but every one of these can be.
    assert set(seen) == {200}, seen
    check_all(replicas, users, each)
    print(f"{users * each} events in {written:.1f} s, checked after {time.monotonic() - began:.1f} s; {dict(seen)}")


@pytest.mark.timeout(240)
def test_events_when_a_primary_of_the_cluster_is_killed_then_writes_resume_and_none_is_lost(tmp_path: Path) -> None:
    stores = cluster(tmp_path, replicas=1)
    with Replicas(tmp_path, {**QUICK, "MEMORYOS_MEMORY__PIPELINE": "async"}, stores=stores) as replicas:
        write(replicas, 20, 5)
        wait_for(lambda: stores.open_entries() == 0, 60, "the end of all work")
        victim = stores.nodes[0]
        assert victim.admin.wait(1, 2000) == 1  # what is not yet with the replica may be lost, as the store says
        victim.kill()
        seen = write(replicas, 20, 5, first=5)
        assert seen[200] == 100
        check_all(replicas, 20, 10)


def test_read_when_the_other_bridge_took_the_write_then_it_is_there_at_once(replicas: Replicas) -> None:
    one, two = replicas.systems
    # Each bridge asks its own server only, so that a read never meets the server that took the write.
    for system in (one, two):
        stop_bridge(system)
        system.env["MEMORYOS_BRIDGE__SERVER"] = system.grpc
        system.start()
    for number in range(20):
        taking, asked = (one, two) if number % 2 else (two, one)
        status, answer = request(taking, "POST", "/v1/memory/add", event(1, number))
        assert status == 200, answer
        body = {"user_id": "u1", "query": f"lighthouse {1000 + number} steps", "limit": 50}
        status, answer = request(asked, "POST", "/v1/memory/retrieve", body)
        assert status == 200, answer
        assert [turn["content"] for turn in answer["short_term"]] == [said(1, n) for n in range(number + 1)]
        assert f"e{number}" in {episode["event_id"] for episode in answer["episodes"]}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("replicas", [pytest.param("sync", marks=pytest.mark.long), "async"], indirect=True)
def test_restart_when_servers_and_bridges_go_one_after_the_other_then_no_request_fails(replicas: Replicas) -> None:
    stop = threading.Event()
    seen: Counter[tuple[str, int]] = Counter()
    failed: list[Any] = []

    def client(user: int) -> None:
        number = 0
        me = {"X-User-ID": f"u{user}"}
        while not stop.is_set():
            for name, verb, path, body in (
                ("add", "POST", "/v1/memory/add", event(user, number)),
                ("retrieve", "POST", "/v1/memory/retrieve", {"user_id": f"u{user}", "query": said(user, number)}),
                ("create", "POST", "/v1/memories", {"content": f"Rule {number} of {user}", "memory_type": "rule"}),
                ("list", "GET", "/v1/memories?page_size=1", None),
                ("chat", "POST", "/v1/chat/completions", chat(user)),
            ):
                try:
                    status, answer = replicas.call(verb, path, body, me)
                except (OSError, ValueError) as error:
                    status, answer = 0, repr(error)
                seen[name, status] += 1
                if status != 200:
                    failed.append((name, status, answer))
            number += 1

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, user) for user in range(6)]
        try:
            time.sleep(1)
            for restart in (stop_server, stop_bridge):
                for system in replicas.systems:
                    restart(system)
                    time.sleep(0.5)
                    system.start(wait=False)
                    system.wait_port(system.grpc)
                    system.wait_port(system.http)
                    time.sleep(1.5)  # until the bridges have found it again
        finally:
            stop.set()
        for one in clients:
            one.result()
    assert not failed, f"{len(failed)} of {sum(seen.values())}: {failed[:5]}"
    assert sum(seen.values()) > 100


@pytest.mark.parametrize("replicas", ["async"], indirect=True)
def test_calls_when_a_server_hangs_then_the_other_one_answers_them_within_their_deadline(replicas: Replicas) -> None:
    hanging, _ = replicas.systems
    assert hanging.server is not None

    def one(number: int) -> float:
        began = time.monotonic()
        status, answer = replicas.call("POST", "/v1/memory/add", event(number, 0))
        assert status == 200, answer
        return time.monotonic() - began

    def heard() -> int:
        return (hanging.home / "server.log").read_bytes().count(b"/AddMemory")

    # A bridge that started before this server connects to it only after a while, and would not notice until then.
    for user, system in enumerate(replicas.systems, 100):
        before, numbers = heard(), itertools.count()
        while heard() < before + 2:
            number = next(numbers)
            assert number < 500, "the bridge asks one server only"
            status, answer = request(system, "POST", "/v1/memory/add", event(user, number))
            assert status == 200, answer
    with ThreadPoolExecutor(16) as pool:
        hanging.server.send_signal(signal.SIGSTOP)
        try:
            took = list(pool.map(one, range(16)))
            assert 1 < max(took) < 15  # some waited for it
            assert max(pool.map(one, range(16, 32))) < 2
        finally:
            hanging.server.send_signal(signal.SIGCONT)
    hanging.wait_ready()
    check_all(replicas, 0, 0)


def chat(user: int) -> dict[str, Any]:
    words = [{"role": "user", "content": f"How many steps has the lighthouse of traveller {user}?"}]
    return {"model": "memoryos/recall", "messages": words}
