"""Backups that are interrupted, and where a restore may go: two at once, an empty directory, a mount point."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from memoryos_server.stores.embedded import RESTORING, runtime_dir
from tests.journeys.test_backup import add, backup, found, valkey
from tests.system import System, until

pytestmark = pytest.mark.embedded("live stores are backed up where they run")

COMMAND = [sys.executable, "-m", "memoryos.cli"]


def asking(system: System, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env={**system.env, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def slow_snapshots(store: Redis) -> None:
    store.config_set("rdb-key-save-delay", 5_000_000)  # microseconds a key: a snapshot takes minutes


@pytest.fixture
def kept(system: System, tmp_path: Path) -> Path:
    """A backup, whose server has stopped."""
    for number in range(5):
        add(system, "ann", number)
    backup(system, tmp_path / "kept")
    system.stop()
    return tmp_path / "kept"


def test_server_when_it_is_stopped_in_a_backup_then_the_backup_says_so_and_leaves_nothing(
    system: System, tmp_path: Path
) -> None:
    system.stop()
    system.env["MEMORYOS_SERVER__DRAIN_SECONDS"] = "0"
    system.start()
    add(system, "ann", 1)
    store = valkey(system)
    slow_snapshots(store)
    backing = asking(system, "backup", "--to", str(tmp_path / "kept"))
    until(lambda: bool(store.info("persistence")["rdb_bgsave_in_progress"]), 30)
    assert list((tmp_path / "kept").glob("*.partial"))
    began = time.monotonic()
    system.stop()
    took = time.monotonic() - began
    said = backing.communicate(timeout=30)[1]
    assert (backing.returncode, said.strip()) == (
        1,
        "memoryos: the server stops: the backup was interrupted, and leaves nothing incomplete",
    )
    assert took < 9, "it waited for the backup as long as a stop may"
    assert not list((tmp_path / "kept").iterdir())
    assert not (system.data / "snapshot.tmp").exists()
    assert not list((system.data / "valkey").glob("*.rdb"))
    system.start()
    assert found(system, "ann", 1)


def test_backup_when_it_is_told_to_end_and_no_server_runs_then_it_leaves_nothing(
    system: System, tmp_path: Path
) -> None:
    add(system, "ann", 1)
    system.stop()
    for attempt in range(20):
        to = tmp_path / f"kept{attempt}"
        backing = asking(system, "backup", "--to", str(to))
        socket = runtime_dir(system.data) / "valkey.sock"
        while backing.poll() is None and not (to.is_dir() and list(to.glob("*.partial"))):
            with suppress(RedisError), Redis(unix_socket_path=str(socket)) as store:
                slow_snapshots(store)
            time.sleep(0.01)
        backing.send_signal(signal.SIGTERM)
        said = backing.communicate(timeout=60)[1]
        if backing.returncode:  # else it was faster than this test
            break
    assert (backing.returncode, said.strip().splitlines()[-1]) == (143, "memoryos: interrupted")
    assert not list(to.iterdir())
    assert not (system.data / "snapshot.tmp").exists()
    assert not list((system.data / "valkey").glob("*.rdb"))


def test_restore_when_two_go_into_one_new_directory_then_one_is_whole_and_the_other_is_refused(
    system: System, kept: Path, tmp_path: Path
) -> None:
    for attempt in range(3):
        target = tmp_path / f"target{attempt}"
        both = [asking(system, "restore", "--from", str(kept), "--data-dir", str(target)) for _ in range(2)]
        ends = sorted((one.communicate(timeout=60)[1].strip(), one.returncode) for one in both)
        codes = [code for _, code in ends]
        assert sorted(codes) == [0, 1], ends
        refusal = next(said for said, code in ends if code)
        # The second of them when the other has ended by then.
        assert "another restore into" in refusal or f"{target} is not empty" in refusal, ends
        assert [one.name for one in tmp_path.glob(f".{target.name}*")] == []
        assert system.cli("keys", "list", "--data-dir", str(target)).returncode == 0
    system.env["MEMORYOS_DATA_DIR"] = str(target)
    system.start()
    assert found(system, "ann", 3)


def stopped_midway(
    system: System, kept: Path, directory: Path, *, there: bool = False
) -> tuple[subprocess.Popen[str], Path]:
    """A restore that stands still in the middle of it (SIGSTOP), and where to; `there`: into a directory that is there."""
    for attempt in range(20):
        target = directory / f"target{attempt}"
        if there:
            target.mkdir()
        filled = target / RESTORING if there else directory / f".{target.name}.restoring"
        restoring = asking(system, "restore", "--from", str(kept), "--data-dir", str(target))
        while restoring.poll() is None and not (filled / "valkey").is_dir():
            time.sleep(0.01)
        restoring.send_signal(signal.SIGSTOP)
        if filled.is_dir():
            return restoring, target
        restoring.send_signal(signal.SIGCONT)  # it was faster than this test
        restoring.communicate(timeout=60)
    pytest.fail("no restore was slow enough")


def test_restore_when_another_is_at_work_then_refuses_and_leaves_it_alone(
    system: System, kept: Path, tmp_path: Path
) -> None:
    first, target = stopped_midway(system, kept, tmp_path)
    try:
        second = system.cli("restore", "--from", str(kept), "--data-dir", str(target), "--force", check=False)
    finally:
        first.send_signal(signal.SIGCONT)
    assert (second.returncode, second.stderr.strip()) == (
        1,
        f"memoryos: another restore into {target} is under way: wait until it has ended",
    )
    assert (first.communicate(timeout=60)[1], first.returncode) == ("", 0)
    system.env["MEMORYOS_DATA_DIR"] = str(target)
    system.start()
    assert found(system, "ann", 3)


@contextmanager
def mounted(at: Path) -> Iterator[None]:
    at.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(at)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def test_restore_when_the_directory_is_an_empty_mount_point_then_fills_it(
    system: System, kept: Path, tmp_path: Path
) -> None:
    target = tmp_path / "volume"
    with mounted(target):
        (target / "lost+found").mkdir()
        system.cli("restore", "--from", str(kept), "--data-dir", str(target))
        assert target.is_mount()
        assert not (target / RESTORING).exists()
        system.env["MEMORYOS_DATA_DIR"] = str(target)
        with system:
            assert found(system, "ann", 3)
        again = system.cli("restore", "--from", str(kept), "--force", check=False)
        assert (again.returncode, "is a mount point, which cannot be replaced" in again.stderr) == (1, True)


def test_restore_when_the_directory_is_there_and_empty_then_it_stays_the_same_one(
    system: System, kept: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o750)
    before = target.stat()
    done = json.loads(system.cli("restore", "--from", str(kept), "--data-dir", str(target), "--json").stdout)
    after = target.stat()
    assert (after.st_ino, after.st_mode, "replaced" in done) == (before.st_ino, before.st_mode, False)
    system.env["MEMORYOS_DATA_DIR"] = str(target)
    system.start()
    assert found(system, "ann", 3)


def test_restore_when_one_into_an_empty_directory_is_at_work_then_refuses_and_leaves_it_alone(
    system: System, kept: Path, tmp_path: Path
) -> None:
    first, target = stopped_midway(system, kept, tmp_path, there=True)
    try:
        second = system.cli("restore", "--from", str(kept), "--data-dir", str(target), "--force", check=False)
    finally:
        first.send_signal(signal.SIGCONT)
    assert (second.returncode, f"the data directory {target} is in use" in second.stderr) == (1, True)
    assert (first.communicate(timeout=60)[1], first.returncode) == ("", 0)


def test_restore_when_one_into_an_empty_directory_was_killed_then_no_server_starts_and_another_completes_it(
    system: System, kept: Path, tmp_path: Path
) -> None:
    first, target = stopped_midway(system, kept, tmp_path, there=True)
    first.kill()
    first.communicate()
    (target / "valkey").mkdir()  # as it would be, had it been killed at the very end
    system.env["MEMORYOS_DATA_DIR"] = str(target)
    refused = system.cli("keys", "list", check=False)
    assert refused.returncode == 1
    assert "was cut off: run `memoryos restore` again" in refused.stderr
    system.cli("restore", "--from", str(kept))
    system.start()
    assert found(system, "ann", 3)


@pytest.mark.parametrize("there", [False, True])
def test_restore_when_it_is_told_to_end_then_it_leaves_nothing(
    system: System, kept: Path, tmp_path: Path, there: bool
) -> None:
    ending, target = stopped_midway(system, kept, tmp_path, there=there)
    ending.send_signal(signal.SIGTERM)
    ending.send_signal(signal.SIGCONT)
    said = ending.communicate(timeout=60)[1]
    assert (ending.returncode, said.strip()) == (143, "memoryos: interrupted")
    assert [one.name for one in target.iterdir() if one.name != "lock"] == [] if there else not target.exists()
    assert not list(tmp_path.glob(f".{target.name}*"))
