"""A person's data handed over whole, and erased: by every door in, by none out, and in no file once that is said."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from memoryos_server.domain.core.faultpoints import ENVIRONMENT, POINTS
from tests.embeddings import POISON, EmbeddingServer
from tests.system import System, until

ADMIN = "admin-key-of-a-test-0123456789"
LISTS = ("episodes", "segments", "knowledge", "memories", "graph", "multimodal", "faq", "consents")
DOORS = ("add", "session", "name", "event", "chat", "stream", "responses", "memory", "version", "extract")
DOORS += ("segment", "tag", "letter", "letter_event")
ROUNDS = 4
"""So often each door is gone through."""
LISTS += ("audit", "keys", "connectors", "jobs", "denials", "recent", "sessions", "queue", "receipts", "heat")


def canary() -> str:
    """A random word without any prefix shared with others; letters only, so that analysis keeps it whole."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(26))


def core(word: str) -> bytes:
    """What is searched for: compression may write a word's ends as part of something that stood elsewhere."""
    return word[4:-4].encode()


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


def ok(answer: tuple[int, Any, Any]) -> Any:
    assert answer[0] == 200, answer
    return answer[1]


def export(system: System, user: str, headers: dict[str, str] | None = None) -> Any:
    return ok(system.post("/v1/security/gdpr/export", {"user_id": user}, headers))["export"]


def delete(system: System, user: str, headers: dict[str, str] | None = None) -> Any:
    return ok(system.post("/v1/security/gdpr/delete", {"user_id": user}, headers))


def certificate(system: System, made: Any, headers: dict[str, str] | None = None) -> Any:
    return ok(system.get(f"/v1/security/gdpr/certificates/{made['certificate_id']}", headers))["certificate"]


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


def add(system: System, user: str, content: str, headers: dict[str, str] | None = None, **more: str) -> Any:
    body = {"user_id": user, "role": "user", "content": content, **more}
    return ok(system.post("/v1/memory/add", body, headers))


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
