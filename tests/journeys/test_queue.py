"""A dead letter's whole way: poison comes in, is seen by REST and by command, its cause is mended, it is replayed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.embeddings import POISON, EmbeddingServer
from tests.system import System, until


@pytest.fixture
def system(tmp_path: Path, embeddings: EmbeddingServer) -> Iterator[System]:
    with System(tmp_path, {**embeddings.env, "MEMORYOS_MEMORY__FLUSH_INTERVAL_SECONDS": "0.1"}) as running:
        yield running


def add(system: System, content: str, event: str, user: str = "ann") -> Any:
    body = {"user_id": user, "role": "user", "content": content, "event_id": event, "session_id": "s"}
    status, answer, headers = system.post("/v1/memory/add", body)
    assert status == 200, answer
    return headers.get("X-MemoryOS-Status")


def state(system: System, event: str, user: str = "ann") -> Any:
    status, answer, _ = system.get(f"/v1/memory/events/{event}?user_id={user}")
    assert status == 200, answer
    return answer


def letters(system: System) -> list[Any]:
    status, answer, _ = system.get("/v1/admin/queue")
    assert status == 200, answer
    return list(answer["dead_letters"])


@pytest.mark.timeout(240)
def test_poison_when_it_comes_in_then_seen_mended_replayed_and_nobody_waited(
    system: System, embeddings: EmbeddingServer
) -> None:
    assert add(system, "The lighthouse at Marken is white.", "e1") is None
    assert add(system, f"An {POISON} heron stood on the pier.", "e2") == "degraded"  # durable, not searchable yet
    add(system, "The ferry leaves at nine.", "e3")
    add(system, "Ben collects stamps.", "e4", user="ben")
    until(lambda: state(system, "e4", "ben")["state"] == "stored")
    (letter,) = until(lambda: letters(system))
    assert (letter["user_id"], letter["event_id"], letter["kind"], letter["attempts"]) == ("ann", "e2", "turn", 5)
    assert "422" in letter["reason"]
    assert letter["content"] == f"An {POISON} heron stood on the pier."
    assert (state(system, "e2")["state"], state(system, "e2")["attempts"]) == ("dead_letter", 5)
    assert until(lambda: state(system, "e3")["state"] == "stored")  # what came behind it went on

    shown = system.cli("queue", "list").stdout
    assert letter["id"] in shown
    assert "event=e2" in shown
    system.stop()  # the same with no server running
    assert letter["id"] in system.cli("queue", "list").stdout

    embeddings.refuses.clear()
    assert system.cli("queue", "replay", letter["id"]).stdout.strip() == "replayed: 1"
    system.start()
    until(lambda: state(system, "e2")["state"] == "stored")
    assert letters(system) == []
    _, session, _ = system.get("/v1/memory/sessions/s?user_id=ann")
    assert [turn["event_id"] for turn in session["turns"]] == ["e1", "e2", "e3"]
    _, found, _ = system.post("/v1/memory/retrieve", {"user_id": "ann", "query": "heron pier"})
    assert found["episodes"][0]["event_id"] == "e2"


@pytest.mark.timeout(240)
def test_dead_letters_when_requeued_or_discarded_over_rest_then_they_are_gone(
    system: System, embeddings: EmbeddingServer
) -> None:
    for n in range(3):
        add(system, f"{POISON} number {n}", f"e{n}", user=f"user{n}")
    found = until(lambda: len(letters(system)) == 3 and letters(system))
    assert len(system.get("/v1/admin/queue?page_size=2")[1]["dead_letters"]) == 2
    token = system.get("/v1/admin/queue?page_size=2")[1]["next_page_token"]
    (last,) = system.get(f"/v1/admin/queue?page_size=2&page_token={token}")[1]["dead_letters"]
    assert last["id"] == found[-1]["id"]

    assert system.call("DELETE", f"/v1/admin/queue/{found[0]['id']}")[0] == 200
    gone = state(system, found[0]["event_id"], found[0]["user_id"])
    assert (gone["state"], gone["reason"]) == ("rejected", "discarded")
    assert system.call("DELETE", f"/v1/admin/queue/{found[0]['id']}")[0] == 404
    other = {"X-Tenant-ID": "other"}
    assert system.get("/v1/admin/queue", other)[1]["dead_letters"] == []
    assert system.post(f"/v1/admin/queue/{found[1]['id']}/requeue", {}, other)[0] == 404

    embeddings.refuses.clear()
    assert system.post(f"/v1/admin/queue/{found[1]['id']}/requeue", {})[0] == 200
    assert system.post("/v1/admin/queue/requeue", {})[1]["requeued"] == 1
    for letter in found[1:]:
        until(lambda letter=letter: state(system, letter["event_id"], letter["user_id"])["state"] == "stored")


@pytest.mark.timeout(240)
def test_edit_when_it_is_replayed_after_its_memory_was_deleted_then_the_memory_stays_deleted(
    system: System, embeddings: EmbeddingServer
) -> None:
    _, answer, _ = system.post("/v1/memories", {"content": "Keeps herons.", "memory_type": "fact"})
    memory = f"/v1/memories/{answer['data']['id']}"
    assert system.call("PATCH", memory, {"content": f"Keeps {POISON} storks."})[0] == 200
    (letter,) = until(lambda: letters(system))
    assert letter["kind"] == "change"
    embeddings.refuses.clear()
    assert system.call("DELETE", memory)[0] == 200
    assert system.post(f"/v1/admin/queue/{letter['id']}/requeue", {})[0] == 200
    until(lambda: system.get("/v1/admin/queue")[1]["depth"] == 0)
    assert letters(system) == []
    assert system.get(memory)[0] == 404
    assert "all that it would keep was deleted since" in (system.home / "server.log").read_text()


@pytest.mark.timeout(240)
def test_provider_when_it_is_out_for_a_while_then_nothing_is_lost_and_nothing_is_dead(
    system: System, embeddings: EmbeddingServer
) -> None:
    embeddings.out = True
    assert add(system, "The lighthouse at Marken is white.", "e1") == "degraded"
    time.sleep(3)
    assert (state(system, "e1")["state"], state(system, "e1")["attempts"]) == ("accepted", 0)
    embeddings.out = False
    until(lambda: state(system, "e1")["state"] == "stored")
    assert letters(system) == []


def test_queue_routes_when_the_input_is_bad_then_named(system: System) -> None:
    for path, param in (("/v1/admin/queue?page_size=0", "page_size"), ("/v1/admin/queue?page_token=x", "page_token")):
        status, answer, _ = system.get(path)
        assert (status, answer["error"]["param"]) == (400, param)
    for verb, path in (("POST", "/v1/admin/queue/nonsense/requeue"), ("DELETE", "/v1/admin/queue/1-2-3")):
        assert system.call(verb, path, {} if verb == "POST" else None)[0] == 404
