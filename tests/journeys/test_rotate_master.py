"""Another master key, and kill -9 in the middle of it: nothing is unreadable, and the same command completes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memoryos_server.domain.core.faultpoints import ENVIRONMENT, POINTS
from tests.system import System

PEOPLE = [f"person {number}" for number in range(12)]


def write(system: System, user: str) -> None:
    turn = {"user_id": user, "role": "user", "content": f"I am {user}."}
    assert system.post("/v1/memory/add", turn)[0] == 200


def read(system: System, user: str) -> Any:
    status, answer, _ = system.post("/v1/memory/retrieve", {"user_id": user, "query": "Who am I?"})
    assert status == 200, answer
    return [one["content"] for one in answer["short_term"]]


def key_files(system: System) -> set[str]:
    return {path.stem for path in (system.home / "config" / "memoryos" / "keys").glob("*.key")}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("rewrap")])
def test_rotation_when_killed_in_the_middle_then_all_is_readable_and_the_same_command_completes_it(
    tmp_path: Path, point: str
) -> None:
    system = System(
        tmp_path, {"MEMORYOS_EMBEDDING__MODEL": "none", ENVIRONMENT: f"{point}:{3 if 'partition' in point else 1}"}
    )
    with system:
        (old,) = key_files(system)
        for user in PEOPLE:
            write(system, user)
        assert system.cli("keys", "rotate-master", check=False).returncode == 1
        assert system.server is not None
        system.server.wait(30)
        del system.env[ENVIRONMENT]
        system.start()
        assert [read(system, user) for user in PEOPLE] == [[f"I am {user}."] for user in PEOPLE]
        write(system, "somebody new")
        done = json.loads(system.cli("keys", "rotate-master", "--json").stdout)
        assert done["left"] == 0
        assert done["previous"] == (old if point == "rewrap.made" else "")
        assert done["rewrapped"] >= (1 if point != "rewrap.made" else len(PEOPLE))
        system.stop()
        folder = system.home / "config" / "memoryos" / "keys"
        for name in key_files(system) - {done["master_key"]}:
            (folder / f"{name}.key").unlink()
        system.start()
        people = [*PEOPLE, "somebody new"]
        assert [read(system, user) for user in people] == [[f"I am {user}."] for user in people]
        system.stop()
        (folder / f"{done['master_key']}.key").unlink()
        refused = system.cli("keys", "list", check=False)
        assert refused.returncode == 1
        assert done["master_key"] in refused.stderr
