"""Moving house: everything arrives, however often the move is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memoryos_server.domain.core.faultpoints import ENVIRONMENT
from tests.journeys.move_support import answers, fill, killed, migrate, settle, unlike
from tests.system import System

pytestmark = pytest.mark.embedded("moves from one data directory to another")


def there_and_back(system: System, tmp_path: Path, episodes: int) -> None:
    fill(system, episodes)
    settle(system)
    before = answers(system, episodes)
    system.stop()
    target = tmp_path / "moved"
    killed(system, "embedded", f"embedded:{target}", "move.points")
    refused = system.cli("keys", "list", check=False, MEMORYOS_DATA_DIR=str(target))
    assert "run the same `memoryos migrate` again" in refused.stderr
    killed(system, "embedded", f"embedded:{target}", "move.keys")
    done = migrate(system, "embedded", f"embedded:{target}")
    assert done.returncode == 0, done.stderr
    moved = json.loads(done.stdout)
    assert moved["resumed"] is True
    assert moved["points"]["main"] >= episodes
    assert not any(count != moved["points"]["main"] for count in moved["points"].values())
    back = migrate(system, f"embedded:{target}", f"embedded:{tmp_path / 'back'}")
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout)["points"] == moved["points"]
    for home in (target, tmp_path / "back"):
        system.env["MEMORYOS_DATA_DIR"] = str(home)
        system.start()
        assert unlike(answers(system, episodes), before) == []
        system.stop()


def test_migrate_when_killed_twice_then_content_and_answers_are_equal(system: System, tmp_path: Path) -> None:
    there_and_back(system, tmp_path, 1_000)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_migrate_when_killed_twice_with_50_000_episodes_then_content_and_answers_are_equal(
    system: System, tmp_path: Path
) -> None:
    there_and_back(system, tmp_path, 50_000)


def test_migrate_when_a_server_runs_or_the_target_holds_something_or_is_unknown_then_refuses(
    system: System, tmp_path: Path
) -> None:
    running = migrate(system, "embedded", f"embedded:{tmp_path / 'new'}")
    assert "stop the server first" in running.stderr
    system.stop()
    other = str(tmp_path / "other")
    system.cli("keys", "list", MEMORYOS_DATA_DIR=other)
    assert "is not empty" in migrate(system, "embedded", f"embedded:{other}").stderr
    assert "neither embedded" in migrate(system, "embedded", "elsewhere").stderr
    assert "there is no embedded store in" in migrate(system, f"embedded:{tmp_path / 'none'}", "embedded").stderr
    assert not (tmp_path / "none").exists()


def test_migrate_when_the_fault_point_is_unknown_then_says_which_there_are(system: System, tmp_path: Path) -> None:
    system.stop()
    done = migrate(system, "embedded", f"embedded:{tmp_path / 'new'}", **{ENVIRONMENT: "move.nowhere"})
    assert done.returncode == 1
    assert done.stderr.startswith("memoryos: ")
    assert "move.points" in done.stderr
    assert not (tmp_path / "new").exists()
