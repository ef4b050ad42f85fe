"""Backups of a running system, and what restoring them brings back."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from memoryos_server.stores.embedded import running_dir
from tests.system import System, until

pytestmark = pytest.mark.embedded("live stores are backed up where they run")

WORDS = ("tea", "wine", "milk", "juice", "water")


def add(system: System, user: str, number: int) -> None:
    content = f"In city number {number} I drank {WORDS[number % 5]} with friend{number}"
    body = {"user_id": user, "role": "user", "content": content, "event_id": f"{user}-{number}"}
    status, answer, _ = system.post("/v1/memory/add", body)
    assert status == 200, answer


def found(system: System, user: str, number: int) -> list[dict[str, Any]]:
    query = {"user_id": user, "query": f"what did I drink with friend{number}", "limit": 5}
    status, answer, _ = system.post("/v1/memory/retrieve", query)
    assert status == 200, answer
    return list(answer["episodes"])


def backup(system: System, to: Path, *flags: str) -> dict[str, Any]:
    return dict(json.loads(system.cli("backup", "--to", str(to), "--json", *flags).stdout))


def valkey(system: System) -> Redis:
    return Redis(unix_socket_path=str(running_dir(system.data) / "valkey.sock"))


@pytest.fixture
def filled(system: System) -> System:
    for number in range(20):
        add(system, "ann", number)
        add(system, "bob", number)
    return system


def test_backup_when_the_server_runs_and_is_restored_elsewhere_then_answers_are_the_same(
    filled: System, tmp_path: Path
) -> None:
    before = [found(filled, user, number) for user in ("ann", "bob") for number in range(20)]
    backup(filled, tmp_path / "kept")
    filled.stop()
    filled.env["MEMORYOS_DATA_DIR"] = str(tmp_path / "elsewhere")
    filled.cli("restore", "--from", str(tmp_path / "kept"))
    filled.start()
    assert [found(filled, user, number) for user in ("ann", "bob") for number in range(20)] == before
    until(lambda: filled.get("/v1/memory/events/ann-3", {"X-User-ID": "ann"})[1]["state"] == "stored")
    add(filled, "ann", 3)
    assert len(found(filled, "ann", 3)) == len(before[3])


def test_backup_when_turns_come_in_meanwhile_then_whatever_was_acknowledged_before_it_is_in_it(
    filled: System, tmp_path: Path
) -> None:
    stop = threading.Event()
    acknowledged: list[int] = []

    def talk() -> None:
        number = 100
        while not stop.is_set():
            add(filled, "eve", number)
            acknowledged.append(number)
            number += 1

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        until(lambda: len(acknowledged) > 20)
        for turn in range(5):
            before = list(acknowledged)
            backup(filled, tmp_path / "kept" / str(turn) / "content.tar")
    finally:
        stop.set()
        talking.join()
    filled.stop()
    filled.cli("restore", "--from", str(tmp_path / "kept" / "4" / "content.tar"), "--force")
    filled.start()
    for number in before:
        contents = [episode["content"] for episode in found(filled, "eve", number)]
        assert any(f"friend{number}" in content.split() for content in contents), (number, contents)


def test_files_when_a_backup_is_made_then_only_the_owner_reads_them_and_no_key_lies_in_content(
    filled: System, tmp_path: Path
) -> None:
    done = backup(filled, tmp_path / "kept")
    content, keyring = Path(done["content"]), Path(done["keyring"])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (content, keyring, content.parent)] == [0o600, 0o600, 0o700]
    store = valkey(filled)
    wrapped = [value for name in store.keys("{p*}:keyring") for value in store.hvals(name)]
    (key_file,) = (tmp_path / "config" / "memoryos" / "keys").glob("*.key")
    master = key_file.read_text().strip()
    assert wrapped
    raws = {path: unpacked(path) for path in (content, keyring)}
    assert all(key in raws[keyring] and key not in raws[content] for key in wrapped)
    for raw in raws.values():
        assert bytes.fromhex(master) not in raw
        assert master.encode() not in raw
    assert not list((filled.data / "valkey").glob("*.rdb"))


def unpacked(path: Path) -> bytes:
    raw = b""
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            part = tar.extractfile(member)
            assert part is not None
            data = part.read()
            raw += data if member.name.startswith("manifest") else zlib.decompress(data)
    return raw


def test_restore_when_somebody_was_erased_since_then_only_that_person_is_gone(filled: System, tmp_path: Path) -> None:
    content = backup(filled, tmp_path / "old")["content"]
    before = found(filled, "ann", 7)
    store = valkey(filled)
    keys = {name: store.hkeys(name) for name in store.keys("{p*}:keyring")}
    bob = next(sid for sids in keys.values() for sid in sids if not is_ann(filled, store, sid))
    erase(store, bob)
    assert filled.post("/v1/memory/retrieve", {"user_id": "cy", "query": "hello"})[0] == 200
    newest = backup(filled, tmp_path / "new", "--keyring-only")["keyring"]
    filled.stop()
    done = filled.cli("restore", "--from", content, "--keyring", newest, "--force", "--json")
    assert json.loads(done.stdout)["erased"] == 1
    filled.start()
    assert found(filled, "ann", 7) == before
    assert found(filled, "bob", 7) == []
    store = valkey(filled)
    assert not [name for name in store.scan_iter() if bob in name]
    add(filled, "bob", 99)
    assert len(found(filled, "bob", 99)) == 1


def is_ann(system: System, store: Redis, sid: bytes) -> bool:
    """Whether a subject is Ann: her turns alone lie in her list of recent ones."""
    add(system, "ann", 50)
    tag = f"{{p{int(sid[:2], 16):03d}}}"
    return int(store.hget(f"{tag}:subject:{sid.decode()}", "seq")) == 21  # type: ignore[arg-type]


def erase(store: Redis, sid: bytes) -> None:
    """What an erasure does first."""
    tag = f"{{p{int(sid[:2], 16):03d}}}"
    store.hincrby(f"{tag}:subject:{sid.decode()}", "epoch", 1)
    store.hdel(f"{tag}:keyring", sid)


def test_restore_when_a_key_was_revoked_since_then_it_stays_revoked(system: System, tmp_path: Path) -> None:
    made = json.loads(system.cli("keys", "create", "--user", "ann", "--json").stdout)
    content = backup(system, tmp_path / "old")["content"]
    system.cli("keys", "revoke", made["id"])
    newest = backup(system, tmp_path / "new", "--keyring-only")["keyring"]
    system.stop()
    system.cli("restore", "--from", content, "--keyring", newest, "--force")
    assert made["id"] not in system.cli("keys", "list").stdout


def test_restore_when_the_directory_holds_something_then_refuses_and_with_force_keeps_it(
    filled: System, tmp_path: Path
) -> None:
    backup(filled, tmp_path / "kept")
    running = filled.cli("restore", "--from", str(tmp_path / "kept"), "--force", check=False)
    assert "is in use by process" in running.stderr
    filled.stop()
    refused = filled.cli("restore", "--from", str(tmp_path / "kept"), check=False)
    assert refused.returncode == 1
    assert "is not empty" in refused.stderr
    assert "--force" in refused.stderr
    done = json.loads(filled.cli("restore", "--from", str(tmp_path / "kept"), "--force", "--json").stdout)
    assert (Path(done["replaced"]) / "valkey").is_dir()


def test_restore_when_a_byte_is_damaged_then_refuses_and_writes_nothing(filled: System, tmp_path: Path) -> None:
    content = Path(backup(filled, tmp_path / "kept")["content"])
    with tarfile.open(content) as tar:
        places = [(member.name, member.offset_data + member.size // 2) for member in tar.getmembers()]
    whole = content.read_bytes()
    for name, place in places:
        content.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        target = tmp_path / "target"
        done = filled.cli("restore", "--from", str(content), "--data-dir", str(target), check=False)
        assert (done.returncode, target.exists()) == (1, False), name
        assert "damaged" in done.stderr, done.stderr
    content.write_bytes(whole[: len(whole) // 2])
    done = filled.cli("restore", "--from", str(content), "--data-dir", str(tmp_path / "target"), check=False)
    assert done.returncode == 1
    assert "take another backup" in done.stderr


def test_restore_when_the_master_key_is_another_then_names_both_and_writes_nothing(
    filled: System, tmp_path: Path
) -> None:
    backup(filled, tmp_path / "kept")
    other = ("--from", str(tmp_path / "kept"), "--data-dir", str(tmp_path / "target"))
    done = filled.cli("restore", *other, check=False, MEMORYOS_SECURITY__MASTER_KEY="ab" * 32)
    assert done.returncode == 1
    assert "the data is locked with master key" in done.stderr
    assert "a backup never holds the master key" in done.stderr
    assert not (tmp_path / "target").exists()


def test_restore_when_the_keyring_is_older_or_of_another_store_then_refuses(filled: System, tmp_path: Path) -> None:
    old = backup(filled, tmp_path / "old")["keyring"]
    content = backup(filled, tmp_path / "new")["content"]
    target = ("--data-dir", str(tmp_path / "target"))
    done = filled.cli("restore", "--from", content, "--keyring", old, *target, check=False)
    assert "is older than" in done.stderr
    filled.stop()
    filled.cli("keys", "list", MEMORYOS_DATA_DIR=str(tmp_path / "other"))
    refused = filled.cli(
        "backup", "--to", str(tmp_path / "new"), check=False, MEMORYOS_DATA_DIR=str(tmp_path / "other")
    )
    assert "the keyring of another store" in refused.stderr


def test_restore_when_the_backup_has_a_newer_schema_then_says_which_version_reads_it(
    filled: System, tmp_path: Path
) -> None:
    content = Path(backup(filled, tmp_path / "kept")["content"])
    newer = tmp_path / "kept" / "newer.tar"
    with tarfile.open(content) as tar, tarfile.open(newer, "w") as out:
        for member in tar.getmembers():
            part = tar.extractfile(member)
            assert part is not None
            raw = part.read()
            if member.name == "manifest.json":
                manifest = raw = raw.replace(b'"schema": 1', b'"schema": 99')
            if member.name == "manifest.sha256":
                raw = hashlib.sha256(manifest).hexdigest().encode()
            member.size = len(raw)
            out.addfile(member, io.BytesIO(raw))
    done = filled.cli("restore", "--from", str(newer), "--data-dir", str(tmp_path / "target"), check=False)
    assert done.returncode == 1
    assert "has schema 99" in done.stderr
    assert "a later one" in done.stderr


def test_backup_when_it_is_cut_off_then_leaves_nothing_and_the_server_goes_on(filled: System, tmp_path: Path) -> None:
    for wait in (0.5, 0.7, 0.9, 1.1):
        asking = subprocess.Popen(
            [sys.executable, "-m", "memoryos.cli", "backup", "--to", str(tmp_path / "kept" / f"{wait}.tar")],
            env=filled.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(wait)
        asking.send_signal(signal.SIGKILL)
        asking.wait()
        add(filled, "ann", 200)
    until(lambda: not list((tmp_path / "kept").glob("*.partial")) and not (filled.data / "snapshot.tmp").exists())
    assert backup(filled, tmp_path / "kept")["counts"]["points/main"] >= 41


def test_backup_when_two_are_asked_for_at_once_then_each_is_whole_or_refused(filled: System, tmp_path: Path) -> None:
    asked = [
        subprocess.Popen(
            [sys.executable, "-m", "memoryos.cli", "backup", "--to", str(tmp_path / f"kept{number}")],
            env=filled.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    ends = [(one.communicate()[1], one.returncode) for one in asked]
    assert all(code == 0 or "another backup is being made" in said for said, code in ends), ends
    assert any(code == 0 for _, code in ends)
    for number, (_, code) in enumerate(ends):
        target = ("--data-dir", str(tmp_path / f"target{number}"))
        done = filled.cli("restore", "--from", str(tmp_path / f"kept{number}"), *target, check=False)
        assert done.returncode == code
