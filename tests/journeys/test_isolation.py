"""Two tenants and their people, who know each other's ids and call at random: nothing of one comes back to another."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.any_rpc import METHODS, over_grpc
from tests.bridge.endpoints import TIME
from tests.isolation import SHARED, Play, text_of
from tests.rpc.authorisation import LINES
from tests.system import System

BOSS = {"Authorization": "Bearer the-admin-key-of-a-settings-file"}


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    env = {
        "MEMORYOS_EMBEDDING__MODEL": "none",
        "MEMORYOS_AUTH__ENABLED": "true",
        "MEMORYOS_AUTH__ADMIN_KEY": BOSS["Authorization"].split()[1],
    }
    with System(tmp_path, env) as running:
        yield running


def play(system: System, calls: int, game: int = 0) -> None:
    seed = int(os.environ.get("MEMORYOS_TEST_SEED") or random.SystemRandom().randrange(2**32)) + game
    print(f"MEMORYOS_TEST_SEED={seed}")
    with grpc.insecure_channel(system.grpc) as channel:
        game = Play(system, channel, BOSS, seed)
        for number in range(calls):
            game.step()
            if number % 10 == 9:
                game.compare()
        print(f"{sum(game.calls.values())} calls, {game.answered} answered, {game.refused} refused, {game.pairs} pairs")
        print(json.dumps(game.calls, sort_keys=True))
        # The game is one only if people have things, ask for others', and every RPC was called.
        assert set(game.calls) == {line.rpc for line in LINES if line.permission != "public"}
        assert game.answered > calls / 3
        assert game.refused > calls / 20
        assert game.pairs > calls / 40
        # And the words would have been seen: to his administrator a person's things do come back.
        ann = game.people[0]
        boss = next(one for one in game.people if one.admin and one.tenant == ann.tenant)
        whose = boss.headers | {"X-User-ID": ann.user}
        said = {"segments": [{"summary": game.says(ann), "tags": ["winter"]}]}  # chance may have erased her at last
        assert over_grpc(channel, METHODS["ImportSegments"], said, whose).code is grpc.StatusCode.OK
        seen = over_grpc(channel, METHODS["RetrieveMemory"], {"query": " ".join(SHARED), "limit": 100}, whose)
        assert any(word in text_of(seen) for word in ann.canaries)
        # Who has said nothing sees what somebody sees who is alone in the world.
        for line in LINES:
            if line.whose == "user" and line.permission == "memory.read":
                alone, beside = (
                    over_grpc(
                        channel, METHODS[line.rpc], line.request, BOSS | {"X-Tenant-ID": tenant, "X-User-ID": "zoe"}
                    )
                    for tenant in ("nowhere", "north")
                )
                assert (alone.code, TIME.sub("", text_of(alone))) == (beside.code, TIME.sub("", text_of(beside))), (
                    line.rpc
                )


@pytest.mark.timeout(600)
def test_people_when_they_call_at_random_with_each_others_ids_then_nothing_of_others_comes_back(system: System) -> None:
    play(system, 1_000)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("game", range(10))
def test_people_when_they_call_a_hundred_thousand_times_then_nothing_of_others_comes_back(
    system: System, game: int
) -> None:
    # Ten games, each with a seed of its own: exports read the whole audit, which in one game would grow all the time.
    play(system, 10_000, game)
