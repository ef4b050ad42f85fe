"""What the tests of moves share: a memory worth moving, moves that are killed, and what must be the same afterwards."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from redis import Redis

from memoryos_server.domain.core.faultpoints import ENVIRONMENT
from memoryos_server.stores.embedded import runtime_dir
from tests.system import System

USERS = 12
"""The least number of users."""
TURNS = 180
"""The most of one user: fewer than a leg of a search finds, else engines choose among equals at its end."""
SYLLABLES = ("ba", "ke", "li", "mo", "nu", "pra", "sto", "vel", "dri", "zan", "fo", "gu", "hem", "jor", "tis", "wol")


def words(number: int) -> list[str]:
    """What a turn says: no two the same, so that no question is answered equally well by many.

    Which of equally good answers an engine gives hangs on the order in which it was filled.
    """
    picked = random.Random(number)  # noqa: S311  # words, no secret
    return ["".join(picked.choices(SYLLABLES, k=3)) for _ in range(8)]


def owner(number: int, episodes: int) -> str:
    """Whose turn it is."""
    return f"u{number % max(USERS, -(-episodes // TURNS))}"


def fill(system: System, episodes: int) -> None:
    talk = system.home / "talk.jsonl"
    with talk.open("w") as out:
        for number in range(episodes):
            content = f"{' '.join(words(number))}."
            line = {
                "role": "user",
                "content": content,
                "session_id": f"s{number // 40}",
                "user_id": owner(number, episodes),
            }
            out.write(json.dumps(line) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "memoryos.cli", "import", "--concurrency", "16", str(talk)],
        env=system.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def answers(system: System, episodes: int) -> list[Any]:
    """What up to 200 questions find, but for what follows from the time at which they are asked."""
    found = []
    for turn in range(min(200, episodes // 10)):
        number = turn * 7919 % episodes
        query = f"{' '.join(words(number)[2:5])}?"
        body = {"user_id": owner(number, episodes), "query": query, "limit": 6}
        status, answer, _ = system.post("/v1/memory/retrieve", body)
        assert status == 200, answer
        assert answer["episodes"]
        found.append(answer)
    return found


CLOSE = 1e-3
"""Scores that differ by less are equal: vectors are kept in half precision, and normalised anew by whoever takes them."""


def unlike(ours: list[Any], theirs: list[Any]) -> list[Any]:
    """What differs first in two lists of answers: ids, order, content, or scores by more than `CLOSE`.

    Of what answers equally well it is not compared which comes first: that hangs on the order in which an engine was
    filled. The best episode is.
    """
    for mine, other in zip(ours, theirs, strict=True):
        pairs = [(mine["long_term"], other["long_term"])]
        pairs += [(one["id"], two["id"]) for one, two in zip(mine["episodes"][:1], other["episodes"][:1], strict=True)]
        for tier in ("episodes", "mid_term"):
            pairs.append((len(mine[tier]), len(other[tier])))
            tied = _tied(mine[tier]) | _tied(other[tier])
            for one, two in zip(mine[tier], other[tier], strict=False):
                if abs(one["score"] - two["score"]) > CLOSE:
                    pairs.append((one, two))
                if one["id"] not in tied and two["id"] not in tied:
                    pairs.append(({**one, "score": 0}, {**two, "score": 0}))
        for one, two in pairs:
            if one != two:
                both = isinstance(one, dict) and isinstance(two, dict)
                return [(key, one[key], two[key]) for key in one if one[key] != two[key]] if both else [one, two]
    return []


def _tied(found: list[Any]) -> set[str]:
    """Those with the score of another; of the last it is not known."""
    return {
        one["id"]
        for at, one in enumerate(found)
        if at == len(found) - 1 or any(two is not one and abs(one["score"] - two["score"]) <= CLOSE for two in found)
    }


def migrate(system: System, source: str, target: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memoryos.cli", "migrate", "--from", source, "--to", target, "--json", *options],
        env={**system.env, **env},
        cwd=system.home,
        capture_output=True,
        text=True,
    )


def killed(system: System, source: str, target: str, point: str) -> None:
    """Begins or goes on with a move that dies at a fault point."""
    done = migrate(system, source, target, **{ENVIRONMENT: point})
    assert done.returncode == -signal.SIGKILL, done.stderr


def store_in(data: Path) -> Redis:
    """The Valkey of a data directory in use."""
    return Redis(unix_socket_path=str(runtime_dir(data) / "valkey.sock"))


def settle(system: System) -> None:
    """Waits until what was accepted is done, and nothing is made of it any more."""
    store = store_in(system.data)
    same, last = 0, -1
    end = time.monotonic() + 300
    while same < 20:
        assert time.monotonic() < end
        now = sum(int(store.xlen(name)) for name in store.scan_iter("{p*}:queue"))
        # Whose turns are full is made a segment of when somebody looks, which may be some seconds later.
        now += sum(int(store.zcount(name, "-inf", time.time())) for name in store.scan_iter("{p*}:due"))
        same = same + 1 if now == last == 0 else 0
        last = now
        time.sleep(0.1)
    store.close()
