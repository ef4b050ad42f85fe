"""A full disk, of either store: what cannot be kept is refused, what was acknowledged is there, and it goes on by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system import System, until

pytestmark = pytest.mark.embedded("fills the disk of a store, which is somebody else's if it is live")

_SIZE = 400 * 1024 * 1024
_LEFT = 300_000


@contextmanager
def small_disk(at: Path) -> Iterator[None]:
    at.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(at)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def fill(disk: Path) -> Path:
    """Takes all space but a little."""
    found = os.statvfs(disk)
    ballast = disk / "ballast"
    with ballast.open("wb") as out:
        left = found.f_bavail * found.f_frsize - _LEFT
        while left > 0:
            left -= out.write(b"x" * min(left, 1 << 20))
    return ballast


def add(system: System, number: int) -> tuple[int, Any]:
    content = f"note {number}: " + f"{number:05} lorem " * 200
    body = {"user_id": "ann", "role": "user", "content": content, "event_id": f"e{number}"}
    status, answer, _ = system.post("/v1/memory/add", body)
    return status, answer


def every_one_is_there(system: System, acknowledged: list[int]) -> bool:
    body = {"user_id": "ann", "query": "note", "limit": 1000}
    found = {episode["event_id"] for episode in system.post("/v1/memory/retrieve", body)[1]["episodes"]}
    return {f"e{number}" for number in acknowledged} <= found


def recovers(system: System, ballast: Path, acknowledged: list[int]) -> None:
    ballast.unlink()
    until(lambda: system.get("/health/status")[1].get("mode") == "ready")
    until(lambda: add(system, 9_000)[0] == 200)
    until(lambda: every_one_is_there(system, acknowledged))
    system.stop()
    system.start()
    until(lambda: every_one_is_there(system, acknowledged))


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_add_when_the_disk_of_valkey_is_full_then_503_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    system = System(tmp_path)
    with small_disk(system.data / "valkey"), system:
        acknowledged = [number for number in range(30) if add(system, number)[0] == 200]
        assert len(acknowledged) == 30
        ballast = fill(system.data / "valkey")
        refused: list[Any] = []
        number = 100
        while len(refused) < 20:
            status, answer = add(system, number)
            assert status in (200, 503), answer
            if status == 200:
                acknowledged.append(number)
            else:
                refused.append(answer["error"])
            number += 1
        assert {error["code"] for error in refused} == {"store_unavailable"}
        recovers(system, ballast, acknowledged)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_add_when_the_disk_of_the_vectors_is_full_then_turns_are_kept_and_found_once_there_is_space(
    tmp_path: Path,
) -> None:
    system = System(tmp_path)
    with small_disk(system.data / "vectors"), system:
        acknowledged = [number for number in range(30) if add(system, number)[0] == 200]
        ballast = fill(system.data / "vectors")
        number = 100
        end = time.monotonic() + 60
        while system.get("/health/status")[1]["qdrant"] == "up":
            assert time.monotonic() < end, "the disk was never full"
            status, answer = add(system, number)
            assert status == 200, answer
            acknowledged.append(number)
            number += 1
        for later in range(number, number + 10):
            assert add(system, later)[0] == 200  # the ledger has space: queued
            acknowledged.append(later)
        assert system.get("/v1/memories", {"X-User-ID": "ann"})[0] in (200, 503)
        recovers(system, ballast, acknowledged)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_backup_when_there_is_no_space_for_it_then_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    system = System(tmp_path)
    with small_disk(tmp_path / "kept"), system:
        for number in range(30):
            assert add(system, number)[0] == 200
        fill(tmp_path / "kept")
        (tmp_path / "kept" / "more").write_bytes(b"x" * (_LEFT - 20_000))
        done = system.cli("backup", "--to", str(tmp_path / "kept"), check=False)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert not list((tmp_path / "kept").glob("*.tar*"))
        assert add(system, 31)[0] == 200
        assert system.cli("backup", "--to", str(tmp_path / "elsewhere")).returncode == 0
