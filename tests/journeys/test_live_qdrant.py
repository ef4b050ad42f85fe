"""The main job with the searchable side in a live Qdrant server (its gRPC on loopback) and Valkey embedded."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stores.qdrant_fixtures import QdrantServer
from tests.system import System

KEY = "a-key-of-a-test"


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[QdrantServer]:
    server = QdrantServer(tmp_path / "qdrant", "--api-key", KEY).start()
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture
def live(qdrant: QdrantServer, tmp_path: Path) -> Iterator[System]:
    env = {"MEMORYOS_QDRANT__URL": qdrant.url, "MEMORYOS_QDRANT__API_KEY": KEY, "MEMORYOS_QDRANT__TIMEOUT_SECONDS": "2"}
    with System(tmp_path / "home", env) as running:
        yield running


def add(system: System, user: str, content: str, **more: Any) -> dict[str, Any]:
    status, answer, _ = system.post("/v1/memory/add", {"user_id": user, "role": "user", "content": content, **more})
    assert status == 200, answer
    return dict(answer)


def retrieved(system: System, user: str, query: str) -> list[str]:
    status, answer, _ = system.post("/v1/memory/retrieve", {"user_id": user, "query": query})
    assert status == 200, answer
    return [episode["content"] for episode in answer["episodes"]]


@pytest.mark.timeout(240)
def test_everything_when_qdrant_is_live_then_it_works_and_outlives_restarts(live: System, qdrant: QdrantServer) -> None:
    user, other = f"u-{uuid.uuid4()}", f"u-{uuid.uuid4()}"
    assert set(live.children()) == {"valkey"}  # no embedded engine beside it
    kept = add(live, user, "I moved to Lisbon in March", session_id="s1")
    add(live, user, "我最喜欢的茶是龙井", session_id="s1")
    gone = add(live, user, "My old phone number was 555-0100", session_id="s2")
    add(live, other, "I live in Oslo", session_id="s1")
    assert retrieved(live, user, "Where did I move to?")[0] == "I moved to Lisbon in March"
    assert retrieved(live, user, "龙井茶")[0] == "我最喜欢的茶是龙井"
    assert not any("Oslo" in text for text in retrieved(live, user, "Where do I live?"))

    me = {"X-User-ID": user}
    status, made, _ = live.post("/v1/memories", {"content": "Answer briefly", "memory_type": "rule"}, me)
    assert status == 200
    memory = made["data"]["id"]
    status, changed, _ = live.call("PATCH", f"/v1/memories/{memory}", {"content": "Answer at length"}, me)
    assert status == 200, changed
    status, listed, _ = live.get("/v1/memories", me)
    assert [one["content"] for one in listed["data"]["memories"]] == ["Answer at length"]
    segment = {"summary": "Alice likes hiking", "tags": ["hobby"], "memory_type": "qa"}
    status, imported, _ = live.post("/v1/memory/manage/import", {"user_id": user, "segments": [segment]})
    assert (status, imported["imported"]) == (200, 1)
    status, tagged, _ = live.post("/v1/memory/manage/search/tags", {"user_id": user, "tags": ["hobby"], "limit": 5})
    assert [one["summary"] for one in tagged["segments"]] == ["Alice likes hiking"]

    status, answer, _ = live.call("DELETE", f"/v1/memory/{gone['memory_id']}", headers=me)
    assert status == 200, answer
    assert not any("555" in text for text in retrieved(live, user, "What was my phone number?"))
    status, said, _ = live.get("/v1/memory/sessions/s1", me)
    assert status == 200, said

    # Neither a killed store nor a restarted server loses what was acknowledged.
    qdrant.stop(signal.SIGKILL)
    qdrant.start()
    live.wait_ready()
    assert retrieved(live, user, "Where did I move to?")[0] == "I moved to Lisbon in March"
    live.stop()
    live.start()
    assert retrieved(live, user, "Where did I move to?")[0] == "I moved to Lisbon in March"
    status, history, _ = live.get(f"/v1/memory/{kept['memory_id']}/history", me)
    assert status == 200, history
    assert [version["content"] for version in history] == ["I moved to Lisbon in March"]
    status, listed, _ = live.get("/v1/memories", me)
    assert [one["content"] for one in listed["data"]["memories"]] == ["Answer at length"]
    assert not any("555" in text for text in retrieved(live, user, "What was my phone number?"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_add_when_qdrant_is_away_then_it_is_kept_and_found_once_it_is_back(
    live: System, qdrant: QdrantServer, how: signal.Signals
) -> None:
    user = f"u-{uuid.uuid4()}"
    add(live, user, "I moved to Lisbon in March")
    if how is signal.SIGKILL:
        qdrant.stop(how)
    else:
        qdrant.send(how)
    began = time.monotonic()
    while live.get("/health/status")[1]["qdrant"] == "up":
        assert time.monotonic() - began < 10
        time.sleep(0.1)
    assert live.get("/health/status")[1] == {"mode": "degraded_ready", "redis": "up", "qdrant": "down"}
    status, answer, _ = live.get("/v1/memories", {"X-User-ID": user})
    assert (status, answer["error"]["code"]) == (503, "store_unavailable")
    began = time.monotonic()
    add(live, user, "My cat is called Miso")
    assert time.monotonic() - began < 6
    if how is signal.SIGKILL:
        qdrant.start()
    else:
        qdrant.send(signal.SIGCONT)
    live.wait_ready()
    end = time.monotonic() + 20
    while "My cat is called Miso" not in retrieved(live, user, "What is my cat called?"):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert "I moved to Lisbon in March" in retrieved(live, user, "Where did I move to?")


def test_start_when_the_key_is_wrong_then_the_server_says_so_and_ends(qdrant: QdrantServer, tmp_path: Path) -> None:
    system = System(tmp_path / "home", {"MEMORYOS_QDRANT__URL": qdrant.url, "MEMORYOS_QDRANT__API_KEY": "wrong"})
    try:
        with pytest.raises(RuntimeError, match=r"the Qdrant server refuses the key: set qdrant\.api_key"):
            system.start(bridge=False)
    finally:
        system.kill(group=True)
