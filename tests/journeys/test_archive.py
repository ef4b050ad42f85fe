"""Audit events in the archive: still told, still counted, in backups, and checked by a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system import System

pytestmark = pytest.mark.embedded("the events of live stores stay in them")


def tail(system: System) -> list[str]:
    lines = system.cli("audit", "tail", "--limit", "1000", "--json").stdout.splitlines()
    return [json.loads(line)["id"] for line in lines]


def test_archive_when_run_beside_a_server_then_tail_still_tells_everything_also_after_a_restore(
    system: System, tmp_path: Path
) -> None:
    for number in range(5):
        system.cli("keys", "create", "--user", f"user{number}")
    before = tail(system)
    assert len(before) >= 5
    assert json.loads(system.cli("archive", "run", "--json").stdout)["moved"] == 0
    moved = json.loads(system.cli("archive", "run", "--days", "0", "--json").stdout)
    assert moved["moved"] == moved["archived"] == len(before)
    assert tail(system) == before
    system.cli("keys", "create", "--user", "later")
    everything = tail(system)
    assert everything[: len(before)] == before
    assert len(everything) == len(before) + 2  # a key is made with intent before and outcome after
    system.cli("backup", "--to", str(tmp_path / "kept"))
    system.stop()
    system.cli("restore", "--from", str(tmp_path / "kept"), "--force")
    assert json.loads(system.cli("archive", "verify", "--json").stdout) == {"intact": len(before)}
    assert tail(system) == everything


def test_archive_when_a_file_was_changed_then_verify_fails_and_the_server_goes_on(system: System) -> None:
    system.cli("keys", "create", "--user", "ann")
    system.cli("archive", "run", "--days", "0")
    path = next((system.data / "archive" / "audit").iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    done = system.cli("archive", "verify", check=False)
    assert done.returncode == 1
    assert "archive" in done.stderr
    system.stop()
    system.start()
    assert system.post("/v1/memory/add", {"user_id": "ann", "role": "user", "content": "hello there"})[0] == 200
