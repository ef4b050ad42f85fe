from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memoryos import Client
from tests.system import System


class Up:
    """`memoryos up` as a real process."""

    def __init__(self, home: Path) -> None:
        self.system = System(home)  # its environment: free ports, folders of their own
        self.system.env.pop("MEMORYOS_BRIDGE__SECRET")
        self.log = home / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "memoryos.cli", "up", *arguments],
                env=self.system.env,
                cwd=self.system.home,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return self.process

    def text(self) -> str:
        return self.log.read_text()

    def wait(self, what: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)

    def ready(self) -> Up:
        assert self.process is not None
        self.wait(lambda: "is ready." in self.text() or self.process.poll() is not None)  # type: ignore[union-attr]
        assert self.process.poll() is None, self.text()
        return self

    def part(self, module: str) -> int:
        """The pid of a running part, 0 if there is none."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
                environ = (folder / "environ").read_bytes()
            except OSError:
                continue
            mine = f"MEMORYOS_SERVER__LISTEN={self.system.grpc}".encode() in environ
            if mine and command[1:3] == [b"-m", module.encode()]:
                return int(folder.name)
        return 0

    def alive(self) -> list[str]:
        """All processes that have this system's environment, the children of the server included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environ = (folder / "environ").read_bytes()
                if f"MEMORYOS_SERVER__LISTEN={self.system.grpc}".encode() in environ:
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.send_signal(signal.SIGTERM)
        try:
            made.process.wait(30)
        except subprocess.TimeoutExpired:
            made.process.kill()
            made.process.wait()


def test_up_when_ready_then_it_says_where_and_its_example_works_and_one_signal_stops_all(up: Up) -> None:
    process = up.start()
    up.ready()
    text = up.text()
    for shown in (up.system.url, up.system.grpc, str(up.system.data), str(up.system.home / "config")):
        assert shown in text
    curl = re.search(r"  curl (\S+) .*\n    -d '(.*)'", text)
    assert curl
    request = urllib.request.Request(  # noqa: S310  # our own bridge
        curl[1], data=curl[2].encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  # our own bridge
        assert answer.status == 200
    with Client(up.system.grpc, user_id="ann") as client:
        assert client.retrieve("coffee").episodes[0].content == "I take my coffee black."

    server, bridge = up.part("memoryos_server"), up.part("memoryos_bridge")
    assert server
    assert bridge
    process.send_signal(signal.SIGINT)
    gone: list[str] = []

    def watch() -> bool:
        for name, pid in (("bridge", bridge), ("server", server)):
            if name not in gone and not Path(f"/proc/{pid}").exists():
                gone.append(name)
        return process.poll() is not None

    up.wait(watch)
    assert gone[0] == "bridge"
    assert process.returncode == 0, up.text()
    assert up.alive() == []


def test_up_when_a_part_dies_then_it_comes_back_and_nothing_is_lost(up: Up) -> None:
    up.start()
    up.ready()
    with Client(up.system.grpc, user_id="ann") as client:
        client.add("My sister Eva lives in Porto.")
    for module in ("memoryos_server", "memoryos_bridge"):
        old = up.part(module)
        os.kill(old, signal.SIGKILL)
        up.wait(lambda module=module, old=old: up.part(module) not in (0, old))  # type: ignore[misc]
        up.system.wait_ready()
    with Client(up.system.grpc, user_id="ann") as client:
        assert client.retrieve("Where does Eva live?").episodes[0].content == "My sister Eva lives in Porto."
    assert up.text().count("is started again") == 2


def test_up_when_killed_then_no_process_stays(up: Up) -> None:
    process = up.start()
    up.ready()
    assert len(up.alive()) >= 3
    process.kill()
    process.wait()
    up.wait(lambda: up.alive() == [], 30)


def test_up_when_a_signal_comes_twice_then_everything_is_killed(up: Up) -> None:
    process = up.start()
    up.ready()
    server = up.part("memoryos_server")
    os.kill(server, signal.SIGSTOP)  # it will not stop by itself
    process.send_signal(signal.SIGTERM)
    up.wait(lambda: up.part("memoryos_bridge") == 0)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    up.wait(lambda: up.alive() == [], 20)


def test_up_when_the_data_directory_is_in_use_then_it_says_so_and_leaves_nothing_running(
    up: Up, tmp_path: Path
) -> None:
    up.start()
    up.ready()
    second = System(tmp_path / "second", {"MEMORYOS_DATA_DIR": str(up.system.data)})
    second.home.mkdir()
    done = second.cli("up", check=False)
    assert done.returncode == 1
    assert str(up.system.data) in done.stderr
    assert "the server ended with exit code 2" in done.stdout
    assert "Traceback" not in done.stderr
    assert up.process is not None
    assert up.process.poll() is None


def test_up_when_an_address_is_taken_then_it_names_the_setting_and_starts_nothing(up: Up, tmp_path: Path) -> None:
    up.start()
    up.ready()
    second = System(tmp_path / "second", {"MEMORYOS_BRIDGE__LISTEN": up.system.http})
    second.home.mkdir()
    done = second.cli("up", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"memoryos: bridge.listen: cannot listen on {up.system.http}: ")
    assert not second.data.exists()


def test_up_when_auth_has_no_admin_key_then_it_says_how_to_make_one(up: Up) -> None:
    done = up.system.cli("up", "--auth-enabled", check=False)
    assert done.returncode == 1
    assert "memoryos keys create --admin" in done.stderr
    assert "MEMORYOS_AUTH__ADMIN_KEY" in done.stderr
    assert up.alive() == []
