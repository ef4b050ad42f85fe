"""A person's data handed over whole, and erased: by every door in, by none out, and in no file once that is said."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from memoryos_server.domain.core.faultpoints import ENVIRONMENT, POINTS
from tests.embeddings import POISON, EmbeddingServer
from tests.journeys.privacy_support import add, canary, certificate, core, delete, export, ok
from tests.system import System, until

LISTS = ("episodes", "segments", "knowledge", "memories", "graph", "multimodal", "faq", "consents")
LISTS += ("audit", "keys", "connectors", "jobs", "denials", "recent", "sessions", "queue", "receipts", "heat")
DOORS = ("add", "session", "name", "event", "chat", "stream", "responses", "memory", "version", "extract")
DOORS += ("segment", "tag", "letter", "letter_event")
ROUNDS = 4
"""So often each door is gone through."""


def compacted(system: System, made: Any, seconds: float = 150) -> Any:
    """The certificate, once it says that files are rewritten; of stores that are not ours, that this is their operator's."""
    ours = system.stores is None

    def look() -> Any:
        found = certificate(system, made)
        return found if found.get("files") else None

    said = until(look, seconds)
    told = {one["store"]: one["state"] for one in said["files"]}
    assert told == dict.fromkeys(("redis", "qdrant"), "rewritten" if ours else "not_ours")
    assert bool(said.get("compacted_at")) is ours
    return said


def raw(system: System) -> dict[str, bytes]:
    """All bytes of each store's files."""
    return {store: system.raw(store) for store in ("valkey", "edge")}


def cleaned(system: System) -> dict[str, bytes]:
    """As `raw`, of those stores whose files have been rewritten, by us or now by their operator."""
    if system.stores is None:
        return raw(system)
    system.stores.rewrite()
    return {"valkey": system.raw("valkey")}


def is_nowhere(system: System, word: str) -> bool:
    """Whether a word is in no file of a store."""
    return all(core(word) not in bytes_of for bytes_of in cleaned(system).values())


def planted(system: System, user: str) -> dict[str, str]:
    """Tells canaries through every door there is; where -> word."""
    words = {door: canary() for door in DOORS}
    whose = {"X-User-ID": user}
    add(
        system,
        user,
        f"My word is {words['add']}",
        session_id=words["session"],
        name=words["name"],
        event_id=words["event"],
    )
    for door in ("chat", "stream"):
        body = {"model": "memoryos/recall", "messages": [{"role": "user", "content": f"My word is {words[door]}"}]}
        answer = system.post("/v1/chat/completions", body | {"stream": door == "stream"}, whose)
        assert answer[0] == 200, answer
    ok(system.post("/v1/responses", {"model": "memoryos/recall", "input": f"My word is {words['responses']}"}, whose))
    kept = ok(system.post("/v1/memories", {"content": f"The word {words['version']}", "memory_type": "rule"}, whose))
    path = f"/v1/memories/{kept['data']['id']}"
    ok(system.call("PATCH", path, {"content": f"The word {words['memory']}"}, whose))
    ok(system.post("/v1/memories/extract", {"text": f"I live in {words['extract'].capitalize()}."}, whose))
    imported = [{"summary": f"About {words['segment']}", "tags": [words["tag"]]}]
    ok(system.post("/v1/memory/manage/import", {"user_id": user, "segments": imported}))
    add(system, user, f"{POISON} {words['letter']}", event_id=words["letter_event"])
    until(lambda: any(one["event_id"] == words["letter_event"] for one in letters(system)))
    return words


def letters(system: System) -> Any:
    return ok(system.get("/v1/admin/queue"))["dead_letters"]


@pytest.fixture
def refusing(embeddings: EmbeddingServer) -> dict[str, str]:
    """The settings of a system whose embedder refuses what is to become a dead letter."""
    return {**embeddings.env, "MEMORYOS_MEMORY__FLUSH_INTERVAL_SECONDS": "0.05"}


@pytest.fixture(params=["true", "false"])
def told(request: pytest.FixtureRequest, tmp_path: Path, refusing: dict[str, str]) -> Iterator[tuple[System, bool]]:
    """A system, and whether it seals."""
    with System(tmp_path, {**refusing, "MEMORYOS_SECURITY__SEALING": request.param}) as system:
        yield system, request.param == "true"


@pytest.mark.timeout(300)
def test_canaries_when_told_through_every_door_and_erased_then_none_is_left_by_any_call_or_in_any_file(
    told: tuple[System, bool],
) -> None:
    system, sealing = told
    user, neighbour, hers = canary(), canary(), canary()
    words = {f"{door} {n}": word for n in range(ROUNDS) for door, word in planted(system, user).items()}
    assert len(words) >= 50
    add(system, neighbour, f"My word is {hers}")
    everything = export(system, user)
    # Positive control of the export: whatever was told is in it.
    assert [door for door, word in words.items() if word not in json.dumps(everything).lower()] == []
    assert set(LISTS) <= everything.keys()
    before = raw(system)
    if not sealing:
        # Positive control of the search in files: told and not sealed, it is found. Compression may hide one.
        for store, bytes_of in before.items():
            told_here = [
                f"{door} {n}" for door in ("add", "chat", "stream", "memory", "segment") for n in range(ROUNDS)
            ]
            seen = [door for door in told_here if core(words[door]) in bytes_of]
            assert len(seen) >= 4 * ROUNDS, f"the search does not work in {store}: {seen}"
        assert core(words["letter 0"]) in before["valkey"]

    made = delete(system, user)
    assert (made["status"], made["errors"]) == ("ok", [])
    said = certificate(system, made)
    assert said["status"] == "ok"
    assert said["verified_at"]
    assert {one["left"] for one in said["categories"]} == {0}
    assert {one["category"] for one in said["categories"]} == set(LISTS)
    told_of = {one["category"]: one["removed"] for one in said["categories"]}
    assert told_of["episodes"] >= 4
    assert all(told_of[name] for name in ("segments", "memories", "queue", "recent", "sessions"))
    assert user not in json.dumps(said)

    # By no call.
    after = export(system, user)
    assert [door for door, word in words.items() if word in json.dumps(after).lower()] == []
    assert [name for name in LISTS if after[name] and name not in ("audit",)] == []
    assert all(one["user_id"] in ("", user) for one in after["audit"])
    shown = [system.cli("audit", "tail", "--limit", "500").stdout, system.cli("queue", "list").stdout]
    for word in words.values():
        found = ok(system.post("/v1/memory/retrieve", {"user_id": user, "query": word}))
        assert (found["episodes"], found["short_term"], found["mid_term"]) == ([], [], [])
        assert found["long_term"]["knowledge"] == []
        assert not any(word in one for one in shown)
    assert ok(system.get("/v1/memories", {"X-User-ID": user}))["data"]["memories"] == []
    assert not any(word in json.dumps(letters(system)) for word in words.values())

    # In no file, once the certificate says so.
    compacted(system, made)
    files = cleaned(system)
    assert all(len(bytes_of) > 1000 for bytes_of in files.values())
    for store, bytes_of in files.items():
        assert [door for door, word in words.items() if core(word) in bytes_of] == [], store
        assert core(user) not in bytes_of or not sealing, store
    if not sealing:
        assert core(hers) in b"".join(files.values())
    # The neighbour is whole.
    found = ok(system.post("/v1/memory/retrieve", {"user_id": neighbour, "query": hers}))
    assert hers in found["episodes"][0]["content"]
    # What comes later is kept, and is somebody new's.
    add(system, user, "I am back", event_id=words["event 0"])
    assert [one["content"] for one in export(system, user)["episodes"]] == ["I am back"]


def test_export_when_there_is_a_lot_then_it_is_whole_and_its_manifest_tells(system: System) -> None:
    segments = [{"summary": f"segment {number} " + "x" * 900, "tags": [f"t{number}"]} for number in range(2000)]
    ok(system.post("/v1/memory/manage/import", {"user_id": "ann", "segments": segments}))
    for number in range(300):
        add(system, "ann", f"turn {number}", event_id=f"e{number}")
    found = export(system, "ann")
    assert {one["content"] for one in found["segments"]} >= {one["summary"] for one in segments}
    assert [one["event_id"] for one in found["episodes"]] == [f"e{number}" for number in range(300)]
    assert found["manifest"]["counts"] == {name: len(found[name]) for name in LISTS}
    digest = hashlib.sha256()
    for name in found["manifest"]["counts"]:
        for item in found[name]:
            text = json.dumps(item, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            digest.update(f"{name} {text}\n".encode())
    assert found["manifest"]["checksum"] == f"sha256:{digest.hexdigest()}"


@pytest.mark.timeout(300)
def test_delete_when_sixteen_write_at_once_then_nothing_of_before_comes_back(system: System) -> None:
    stop, told, lock = threading.Event(), [0], threading.Lock()
    failures: list[Any] = []

    def write(number: int) -> None:
        while not stop.is_set():
            with lock:
                told[0] += 1
                name = f"e{told[0]}"
            status, answer, _ = system.post(
                "/v1/memory/add", {"user_id": "ann", "role": "user", "content": f"word {name}", "event_id": name}
            )
            if status != 200:
                failures.append((status, answer))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(5):
            time.sleep(0.4)
            with lock:
                before = told[0] - 16  # those under way may count as later
            made = delete(system, "ann")
            assert made["status"] == "ok", made
            numbers = [int(one["event_id"][1:]) for one in export(system, "ann")["episodes"]]
            assert [number for number in numbers if number <= before] == []
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failures == []
    until(lambda: ok(system.get("/v1/admin/queue"))["depth"] == 0)
    found = export(system, "ann")
    numbers = [int(one["event_id"][1:]) for one in found["episodes"]]
    assert numbers, "what came after the last erasure is kept"
    assert min(numbers) > before
    final = delete(system, "ann")
    assert final["status"] == "ok"
    assert export(system, "ann")["episodes"] == []


def ok_certificate(system: System, resource: str) -> bool:
    """Whether the certificate of what an audit event names says that all is gone; False: there is none."""
    kind, _, name = resource.partition("/")
    assert kind == "erasure"
    status, answer, _ = system.get(f"/v1/security/gdpr/certificates/{name}")
    assert status in (200, 404), answer
    return bool(status == 200 and answer["certificate"]["status"] == "ok")


def killed(system: System, user: str, point: str | None, after: float = 0.0) -> None:
    """Erases a user, and kills all processes in the middle of it; what must be true after the next start.

    Args:
        system: One that is not running; it runs at the end.
        user: Somebody new.
        point: The fault point where the server dies; None: it is killed from outside.
        after: Then so many seconds after the erasure was asked for.
    """
    system.start()
    word, hers = canary(), canary()
    add(system, user, f"My word is {word}", event_id="e1")
    add(system, f"neighbour-{user}", f"My word is {hers}")
    ok(system.post("/v1/memories", {"content": f"The word {word}", "memory_type": "rule"}, {"X-User-ID": user}))
    system.stop()
    assert not is_nowhere(system, word)
    if point is not None:
        system.env[ENVIRONMENT] = point
    system.start()
    answers: list[tuple[int, Any]] = []

    def ask() -> None:
        with contextlib.suppress(OSError, HTTPException):  # the bridge dies, too
            answers.append(system.post("/v1/security/gdpr/delete", {"user_id": user})[:2])

    asking = threading.Thread(target=ask)
    asking.start()
    if point is None:
        time.sleep(after)
    else:
        until(lambda: system.server is None or system.server.poll() is not None)
        asking.join()
    system.kill(group=True)
    asking.join()
    system.env.pop(ENVIRONMENT, None)
    system.start()
    status, answer = answers[0] if answers else (0, {})
    assert status in ((200, 503) if point else (0, 200, 503)), answer
    found = export(system, user)
    if word in json.dumps(found["episodes"]):  # nothing was erased, and nobody was told that it was
        assert status != 200, answer
        assert point in (None, "erase.intent")
        assert word in json.dumps(found["memories"])
        answer = delete(system, user)
        status = 200
    else:
        assert point != "erase.intent"

    def is_empty() -> bool:
        given = export(system, user)
        return not any(given[name] for name in LISTS if name != "audit")

    until(is_empty)
    if status == 200:
        assert compacted(system, answer)["status"] == "ok"
    # Whoever does not know the certificate's id sees the end in the files.
    until(partial(is_nowhere, system, word))
    # Or in the audit: the intent says which erasure it was, the outcome that it has come to its end.
    asked = {"user_id": user, "event_type": "gdpr.delete", "limit": 1000}
    intents = [one for one in ok(system.post("/v1/security/audit/logs", asked))["events"] if one["outcome"] == "intent"]
    erased = {one["resource"]: ok_certificate(system, one["resource"]) for one in intents}
    assert sum(erased.values()) == 1, erased
    (resource,) = [name for name, is_erased in erased.items() if is_erased]
    everything = ok(system.post("/v1/security/audit/logs", {"event_type": "gdpr.delete", "limit": 1000}))["events"]
    assert [one["outcome"] for one in everything if one["resource"] == resource] == ["ok", "intent"]
    found = ok(system.post("/v1/memory/retrieve", {"user_id": f"neighbour-{user}", "query": hers}))
    assert hers in found["episodes"][0]["content"]


ERASING = [point for point in POINTS if point.startswith("erase.")]


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[System]:
    """A system that is not running yet, and may be killed. It does not seal: what was not removed could be read in its files."""
    env = {"MEMORYOS_MEMORY__FLUSH_INTERVAL_SECONDS": "0.05", "MEMORYOS_SECURITY__SEALING": "false"}
    system = System(tmp_path, env)
    try:
        yield system
    finally:
        system.end()


@pytest.mark.timeout(400)
def test_delete_when_killed_at_each_point_then_the_next_start_completes_it(mortal: System) -> None:
    assert len(ERASING) == 6
    for point in ERASING:
        killed(mortal, f"user-{point}", point)
        mortal.stop()


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_delete_when_killed_fifty_times_then_the_next_start_completes_it(mortal: System) -> None:
    for number in range(25):
        killed(mortal, f"point-{number}", ERASING[number % len(ERASING)])
        mortal.stop()
    for number in range(25):  # and wherever it is, from before anything is written until after the answer
        killed(mortal, f"moment-{number}", None, number * 0.01)
        mortal.stop()


def test_delete_when_a_store_is_away_then_partial_and_completed_once_it_is_back(system: System) -> None:
    word = canary()
    add(system, "ann", f"My word is {word}")
    with system.frozen("edge"):
        made = delete(system, "ann")
        assert made["status"] == "partial"
        assert any(line.startswith("episodes: ") for line in made["errors"])
        assert certificate(system, made)["status"] == "partial"
    until(lambda: certificate(system, made)["status"] == "ok")
    assert compacted(system, made)["errors"] == []
    assert is_nowhere(system, word)


def test_delete_when_it_cannot_be_recorded_then_503_and_nothing_is_erased(system: System) -> None:
    add(system, "ann", "I live in Porto")
    with system.frozen("valkey"):
        status, answer, _ = system.post("/v1/security/gdpr/delete", {"user_id": "ann"})
        assert status == 503, answer
    until(lambda: system.get("/health/status")[1]["mode"] == "ready")
    assert [one["content"] for one in export(system, "ann")["episodes"]] == ["I live in Porto"]


@pytest.mark.embedded("live stores are backed up where they run")
def test_backup_when_it_is_older_than_the_erasure_then_it_brings_nobody_back(system: System, tmp_path: Path) -> None:
    word, hers = canary(), canary()
    add(system, "ann", f"My word is {word}")
    add(system, "bob", f"My word is {hers}")
    until(lambda: ok(system.get("/v1/admin/queue"))["depth"] == 0)
    place = tmp_path / "backups"
    place.mkdir()
    system.cli("backup", "--to", str(place / "content.tar"))
    made = delete(system, "ann")
    assert made["status"] == "ok"
    add(system, "ann", "I am back")
    system.cli("backup", "--to", str(place), "--keyring-only")
    system.stop()
    system.env["MEMORYOS_DATA_DIR"] = str(tmp_path / "restored")
    said = system.cli("restore", "--from", str(place / "content.tar")).stdout
    assert "1 people who were erased" in said
    system.start()
    found = export(system, "ann")
    assert [name for name in LISTS if found[name] and name != "audit"] == []
    assert certificate(system, made)["status"] == "ok", "certificates outlive older content"
    theirs = ok(system.post("/v1/memory/retrieve", {"user_id": "bob", "query": hers}))
    assert hers in theirs["episodes"][0]["content"]
