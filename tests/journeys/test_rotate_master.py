"""Another master key, and kill -9 in the middle of it: nothing is unreadable, and the same command completes it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from memoryos_server.domain.core.faultpoints import ENVIRONMENT, POINTS
from memoryos_server.stores.keyring import MasterKeys
from tests.system import System

PEOPLE = [f"person {number}" for number in range(12)]


def write(system: System, user: str) -> None:
    turn = {"user_id": user, "role": "user", "content": f"I am {user}."}
    assert system.post("/v1/memory/add", turn)[0] == 200


def read(system: System, user: str) -> Any:
    status, answer, _ = system.post("/v1/memory/retrieve", {"user_id": user, "query": "Who am I?"})
    assert status == 200, answer
    return [one["content"] for one in answer["short_term"]]


class KeyFolder:
    """The master keys of embedded stores, in files that MemoryOS makes."""

    def __init__(self, system: System) -> None:
        self._folder = system.home / "config" / "memoryos" / "keys"
        (self._old,) = self._folder.glob("*.key")

    def offer(self) -> None:
        """Gives the server what it needs for another key: nothing."""

    def is_old(self, name: str) -> bool:
        """Whether the id is that of the first key."""
        return name == self._old.stem

    def destroy_old(self, new: str) -> None:
        """What is done after a rotation: every key goes but the new one, also one that was made and never used."""
        for path in self._folder.glob("*.key"):
            if path.stem != new:
                path.unlink()

    def lose_new(self) -> None:
        """Leaves no key that opens anything."""
        for path in self._folder.glob("*.key"):
            path.unlink()


class KeySettings:
    """The master keys of live stores, which their operator makes and sets."""

    NOW, BEFORE = "MEMORYOS_SECURITY__MASTER_KEY", "MEMORYOS_SECURITY__PREVIOUS_MASTER_KEY"

    def __init__(self, system: System) -> None:
        self._system = system
        self._old = system.env[self.NOW]

    def offer(self) -> None:
        """Sets a new key beside the old one and restarts the server."""
        self._system.stop()
        self._system.env |= {self.NOW: secrets.token_hex(32), self.BEFORE: self._old}
        self._system.start()

    def is_old(self, name: str) -> bool:
        """Whether the id is that of the first key."""
        return name == MasterKeys(self._old, None).new().id

    def destroy_old(self, _new: str) -> None:
        """What is done after a rotation."""
        del self._system.env[self.BEFORE]

    def lose_new(self) -> None:
        """Leaves the key that was taken away, which opens nothing any more."""
        self._system.env[self.NOW] = self._old


@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("rewrap")])
def test_rotation_when_killed_in_the_middle_then_all_is_readable_and_the_same_command_completes_it(
    tmp_path: Path, point: str
) -> None:
    system = System(
        tmp_path, {"MEMORYOS_EMBEDDING__MODEL": "none", ENVIRONMENT: f"{point}:{3 if 'partition' in point else 1}"}
    )
    with system:
        keys = KeyFolder(system) if system.stores is None else KeySettings(system)
        for user in PEOPLE:
            write(system, user)
        keys.offer()
        assert [read(system, user) for user in PEOPLE] == [[f"I am {user}."] for user in PEOPLE]
        assert system.cli("keys", "rotate-master", check=False).returncode == 1
        assert system.server is not None
        system.server.wait(30)
        del system.env[ENVIRONMENT]
        system.start()
        assert [read(system, user) for user in PEOPLE] == [[f"I am {user}."] for user in PEOPLE]
        write(system, "somebody new")
        done = json.loads(system.cli("keys", "rotate-master", "--json").stdout)
        assert done["left"] == 0
        assert keys.is_old(done["previous"]) if point == "rewrap.made" else done["previous"] == ""
        assert done["rewrapped"] >= (1 if point != "rewrap.made" else len(PEOPLE))
        system.stop()
        keys.destroy_old(done["master_key"])
        system.start()
        people = [*PEOPLE, "somebody new"]
        assert [read(system, user) for user in people] == [[f"I am {user}."] for user in people]
        system.stop()
        keys.lose_new()
        refused = system.cli("keys", "list", check=False)
        assert refused.returncode == 1
        assert done["master_key"] in refused.stderr
