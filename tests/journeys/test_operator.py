"""Commands of the operator beside a running server, whatever happens to it meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time

import pytest

from tests.system import System


def test_keys_when_the_shell_has_another_runtime_directory_then_the_server_is_found(system: System) -> None:
    # Short, for else its sockets would lie in /tmp after all.
    with tempfile.TemporaryDirectory(prefix="mos-", dir="/tmp") as other:
        made = system.cli("keys", "create", "--user", "ann", XDG_RUNTIME_DIR=other).stdout
    assert made.split()[0] in system.cli("keys", "list").stdout


def test_keys_when_the_server_ends_in_the_middle_then_says_so(system: System) -> None:
    done: list[subprocess.CompletedProcess[str]] = []
    assert system.server is not None
    os.kill(system.server.pid, signal.SIGSTOP)  # it takes the command and does not come to answer
    asking = threading.Thread(target=lambda: done.append(system.cli("keys", "list", check=False)))
    asking.start()
    time.sleep(1.5)
    system.kill(bridge=False)
    asking.join(30)
    assert done[0].returncode == 1
    assert done[0].stderr.strip() == (
        "memoryos: the server ended before it had answered; what was asked may have been done"
    )


@pytest.mark.parametrize(
    "command", [b"", b"{\n", b'{"command": "keys.create", "arguments": {"x": 1}}\n', b"x" * 100_000]
)
def test_operator_socket_when_told_nonsense_then_answers_and_goes_on(system: System, command: bytes) -> None:
    import json
    import socket

    from memoryos_server.stores.embedded import running_dir

    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(running_dir(system.data) / "operator.sock"))
        line.sendall(command)
        line.shutdown(socket.SHUT_WR)
        assert json.loads(line.makefile().readline())["error"] == "malformed command"
    assert system.cli("keys", "list").returncode == 0
