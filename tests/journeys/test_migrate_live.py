"""Moving house between the embedded stores and live ones: Valkey over TCP or as a cluster, Qdrant's gRPC on loopback."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.embeddings import POISON, EmbeddingServer
from tests.journeys.move_support import (
    USERS,
    answers,
    fill,
    killed,
    migrate,
    settle,
    unlike,
    words,
)
from tests.stores.qdrant_fixtures import QdrantServer
from tests.system import System, until
from tests.valkeys import TcpValkey, ValkeyCluster

pytestmark = pytest.mark.embedded("begins with embedded stores, and names the live ones itself")


@pytest.fixture
def system(tmp_path: Path, embeddings: EmbeddingServer) -> Iterator[System]:
    with System(tmp_path / "home", embeddings.env) as running:
        yield running


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[TcpValkey]:
    server = TcpValkey(tmp_path / "valkey", password="s3cret").start()
    yield server
    server.remove()


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[QdrantServer]:
    server = QdrantServer(tmp_path / "qdrant", "--api-key", "a-key").start()
    yield server
    server.stop(signal.SIGKILL)


def use(system: System, valkey: str, qdrant: str) -> None:
    """Has commands and servers use live stores; "": the embedded one."""
    changed = {"MEMORYOS_REDIS__URL": valkey, "MEMORYOS_QDRANT__URL": qdrant, "MEMORYOS_QDRANT__API_KEY": "a-key"}
    for name, value in changed.items():
        system.env.pop(name, None)
        if value:
            system.env[name] = value


def key_file(system: System) -> str:
    """Where the embedded store's master key lies."""
    (path,) = system.home.rglob("*.key")
    return str(path)


def ask(system: System, path: str, body: Any = None, user: str = "") -> Any:
    headers = {"X-User-ID": user} if user else {}
    status, answer, _ = system.get(path, headers) if body is None else system.post(path, body, headers)
    assert status == 200, answer
    return answer


def more(system: System) -> None:
    """Adds what is no episode: segments, facts, typed memories with a history, API keys, a dead letter."""
    for number in range(USERS):
        user = f"u{number}"
        segments = [
            {"summary": " ".join(words(-20 * number - n - 1)), "tags": ["hobby"], "memory_type": "qa"}
            for n in range(20)
        ]
        ask(system, "/v1/memory/manage/import", {"user_id": user, "segments": segments})
        for n in range(5):
            made = ask(system, "/v1/memories", {"content": f"Rule {n} of {user}", "memory_type": "rule"}, user)
            changed = {"content": f"Rule {n} of {user}, as it is now"}
            status, answer, _ = system.call("PATCH", f"/v1/memories/{made['data']['id']}", changed, {"X-User-ID": user})
            assert status == 200, answer
        ask(system, "/v1/memory/add", {"user_id": user, "role": "user", "content": f"I live in Lisbon{number}."})
        system.cli("keys", "create", "--user", user)
    ask(
        system, "/v1/memory/add", {"user_id": "u1", "role": "user", "content": f"An {POISON} heron.", "event_id": "bad"}
    )
    until(lambda: system.get("/v1/admin/queue")[1]["dead_letters"])


def content(system: System) -> dict[str, Any]:
    """What there is apart from what questions find."""
    found: dict[str, Any] = {"queue": system.get("/v1/admin/queue")[1]["dead_letters"]}
    assert found["queue"]
    found["keys"] = sorted(system.cli("keys", "list", "--json").stdout.splitlines())
    assert len(found["keys"]) == USERS
    for number in range(USERS):
        user = f"u{number}"
        exported = ask(system, "/v1/memory/manage/export", {"user_id": user, "format": "json"})["data"]["segments"]
        assert len(exported) >= 20
        for segment in exported:
            for counted in ("access_count", "heat_score", "last_accessed"):  # questions change these
                segment.pop(counted, None)
        memories = ask(system, "/v1/memories?page_size=100", user=user)["data"]["memories"]
        assert any(one["content"].endswith("as it is now") for one in memories)
        known = ask(system, "/v1/memory/retrieve", {"user_id": user, "query": "Where do I live?"})["long_term"]
        assert f"Lisbon{number}" in json.dumps(known)
        sessions = ask(system, f"/v1/memory/sessions?user_id={user}")
        assert sessions["sessions"]
        said = ask(system, f"/v1/memory/sessions/{sessions['sessions'][0]['id'] or '-'}?user_id={user}")
        assert said["turns"]
        found[user] = exported, memories, known, sessions, said
    return found


def there_and_back(system: System, valkey: TcpValkey, qdrant: QdrantServer, tmp_path: Path, episodes: int) -> None:
    fill(system, episodes)
    more(system)
    settle(system)
    found, before = answers(system, episodes), content(system)
    system.stop()
    use(system, valkey.url, qdrant.url)
    assert "MEMORYOS_SECURITY__MASTER_KEY_FILE" in migrate(system, "embedded", "live").stderr
    system.env["MEMORYOS_SECURITY__MASTER_KEY_FILE"] = key_file(system)

    killed(system, "embedded", "live", "move.points")
    assert "run the same `memoryos migrate` again" in system.cli("keys", "list", check=False).stderr
    killed(system, "embedded", "live", "move.keys:3")
    done = migrate(system, "embedded", "live")
    assert done.returncode == 0, done.stderr
    moved = json.loads(done.stdout)
    assert moved["resumed"] is True
    assert moved["points"]["main"] > episodes
    assert len(moved["points"]) == 2  # and the vectors
    system.start()
    assert "running server is on" in migrate(system, "live", f"embedded:{tmp_path / 'back'}").stderr
    assert unlike(answers(system, episodes), found) == []
    assert content(system) == before
    system.stop()

    back = tmp_path / "back"
    back.mkdir(mode=0o700)
    for point in ("move.points", "move.keys:5"):
        killed(system, "live", f"embedded:{back}", point)
    done = migrate(system, "live", f"embedded:{back}")
    assert done.returncode == 0, done.stderr
    returned = json.loads(done.stdout)
    assert returned["resumed"] is True
    assert returned["points"].keys() == moved["points"].keys()
    use(system, "", "")
    del system.env["MEMORYOS_SECURITY__MASTER_KEY_FILE"]
    system.env["MEMORYOS_DATA_DIR"] = str(back)
    system.start()
    assert unlike(answers(system, episodes), found) == []
    assert content(system) == before


@pytest.mark.timeout(600)
def test_migrate_when_live_and_back_is_killed_twice_each_way_then_content_and_answers_are_equal(
    system: System, valkey: TcpValkey, qdrant: QdrantServer, tmp_path: Path
) -> None:
    there_and_back(system, valkey, qdrant, tmp_path, 1_000)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_migrate_when_live_and_back_with_50_000_episodes_is_killed_then_content_and_answers_are_equal(
    system: System, valkey: TcpValkey, qdrant: QdrantServer, tmp_path: Path
) -> None:
    there_and_back(system, valkey, qdrant, tmp_path, 50_000)


@pytest.mark.timeout(300)
def test_migrate_when_the_target_is_a_cluster_then_every_node_has_its_part_and_answers_are_equal(
    system: System, qdrant: QdrantServer, tmp_path: Path
) -> None:
    fill(system, 300)
    more(system)
    settle(system)
    found, before = answers(system, 300), content(system)
    system.stop()
    cluster = ValkeyCluster(tmp_path / "cluster").start()
    try:
        use(system, cluster.url, qdrant.url)
        system.env["MEMORYOS_SECURITY__MASTER_KEY_FILE"] = key_file(system)
        done = migrate(system, "embedded", "live")
        assert done.returncode == 0, done.stderr
        assert all(node.admin.dbsize() > 0 for node in cluster.nodes)
        system.start()
        assert unlike(answers(system, 300), found) == []
        assert content(system) == before
        assert "running server is on" in migrate(system, "live", f"embedded:{tmp_path / 'back'}").stderr
        system.stop()
        for options in ((), ("--dry-run",)):
            assert "is not empty" in migrate(system, "embedded", "live", *options).stderr
        done = migrate(system, "live", f"embedded:{tmp_path / 'back'}")
        assert done.returncode == 0, done.stderr
    finally:
        cluster.remove()


@pytest.mark.timeout(300)
def test_migrate_when_only_qdrant_is_live_then_the_rest_is_embedded_in_the_data_directory(
    system: System, qdrant: QdrantServer, tmp_path: Path
) -> None:
    fill(system, 100)
    settle(system)
    found = answers(system, 100)
    system.stop()
    assert "set redis.url, qdrant.url or both" in migrate(system, "embedded", "live").stderr
    use(system, "", qdrant.url)
    assert "both ends would be in" in migrate(system, "embedded", "live").stderr
    aside = tmp_path / "aside"
    os.rename(system.data, aside)
    planned = migrate(system, f"embedded:{aside}", "live", "--dry-run")
    assert json.loads(planned.stdout)["points"]["main"] == json.loads(planned.stdout)["points"].popitem()[1] >= 100
    assert not system.data.exists()
    done = migrate(system, f"embedded:{aside}", "live")
    assert done.returncode == 0, done.stderr
    system.start()
    assert unlike(answers(system, 100), found) == []
    system.stop()
    done = migrate(system, "live", f"embedded:{tmp_path / 'back'}")
    assert done.returncode == 0, done.stderr


def test_migrate_when_a_live_store_is_away_or_refuses_then_says_which(
    system: System, valkey: TcpValkey, qdrant: QdrantServer
) -> None:
    system.stop()
    system.env["MEMORYOS_SECURITY__MASTER_KEY_FILE"] = key_file(system)
    use(system, valkey.url, qdrant.url)
    system.env["MEMORYOS_QDRANT__API_KEY"] = "another"
    assert "refuses the key" in migrate(system, "embedded", "live").stderr
    use(system, valkey.url, "http://127.0.0.1:1")
    assert "qdrant.url: The vector store is not reachable" in migrate(system, "embedded", "live").stderr
    use(system, "redis://127.0.0.1:1", qdrant.url)
    assert "redis://127.0.0.1:1: The store does not answer" in migrate(system, "embedded", "live").stderr
