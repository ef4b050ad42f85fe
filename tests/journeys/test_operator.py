"""Commands of the operator beside a running server, whatever happens to it meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from memoryos_server import operator
from memoryos_server.domain.core.faults import Fault
from memoryos_server.stores.embedded import running_dir
from tests.replicas import Replicas, stop_server
from tests.system import System


def test_keys_when_the_shell_has_another_runtime_directory_then_the_server_is_found(system: System) -> None:
    # Short, for else its sockets would lie in /tmp after all.
    with tempfile.TemporaryDirectory(prefix="mos-", dir="/tmp") as other:
        made = system.cli("keys", "create", "--user", "ann", XDG_RUNTIME_DIR=other).stdout
    assert made.split()[0] in system.cli("keys", "list").stdout


def test_keys_when_the_server_ends_in_the_middle_then_says_so(system: System) -> None:
    async def asked() -> list[object]:
        return [item async for item in operator.call(running_dir(system.data), "keys.list", {})]

    async def cut_off() -> None:
        assert system.server is not None
        os.kill(system.server.pid, signal.SIGSTOP)  # it takes the command and does not come to answer
        asking = asyncio.create_task(asked())
        await asyncio.sleep(0.5)
        await asyncio.to_thread(system.kill, bridge=False)
        with pytest.raises(Fault, match="the server ended before it had answered; what was asked may have been done"):
            await asking

    asyncio.run(cut_off())


@pytest.mark.parametrize(
    "command", [b"", b"{\n", b'{"command": "keys.create", "arguments": {"x": 1}}\n', b"x" * 100_000]
)
def test_operator_socket_when_told_nonsense_then_answers_and_goes_on(system: System, command: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        (path,) = running_dir(system.data).glob("operator*.sock")
        line.connect(str(path))
        line.sendall(command)
        line.shutdown(socket.SHUT_WR)
        assert json.loads(line.makefile().readline())["error"] == "malformed command"
    assert system.cli("keys", "list").returncode == 0


def test_commands_when_two_servers_have_one_data_directory_then_either_is_found_while_it_runs(tmp_path: Path) -> None:
    shared = {"MEMORYOS_DATA_DIR": str(tmp_path / "shared"), "MEMORYOS_EMBEDDING__MODEL": "none"}
    with Replicas(tmp_path, {**shared, "MEMORYOS_SERVER__DRAIN_SECONDS": "0"}) as replicas:
        first, second = replicas.systems
        directory = running_dir(first.data)

        def listening() -> int:
            return len(list(directory.glob("operator*.sock")))

        def answered() -> list[str]:
            async def asked() -> list[str]:
                return [str(item["id"]) async for item in operator.call(directory, "keys.list", {})]

            return asyncio.run(asked())

        made = first.cli("keys", "create", "--user", "ann", "--json").stdout
        assert listening() == 2
        assert answered() == [json.loads(made)["id"]]
        stop_server(second)
        assert listening() == 1
        assert answered() == [json.loads(made)["id"]]
        second.start(bridge=False)
        first.kill(bridge=False)
        assert answered() == [json.loads(made)["id"]]
        assert listening() == 2  # one of them of a server that is no more
        stop_server(second)
        with pytest.raises(ConnectionRefusedError):
            answered()
        assert made.split('"id"')[1][:8] in second.cli("keys", "list", "--json").stdout
        second.start(bridge=False)
        assert listening() == 1
