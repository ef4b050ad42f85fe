from __future__ import annotations

import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoryos import Client
from tests.clients.supervised import Up
from tests.system import System


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    yield made
    made.stop()


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


def test_up_when_nobody_reads_its_output_any_more_then_one_signal_stops_it_all_the_same(up: Up) -> None:
    reader, writer = os.pipe()
    process = up.start(out=writer)
    os.close(writer)
    with os.fdopen(reader) as output:
        assert any("is ready." in line for line in output)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    up.wait(lambda: up.alive() == [], 20)


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
