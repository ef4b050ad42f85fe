"""Many writers at once, in both pipelines: nothing is lost, and each user's order is kept."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoryos import AsyncClient
from tests.embeddings import EmbeddingServer
from tests.system import System


@pytest.fixture(scope="module", params=["sync", "async"])
def system(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[System]:
    with EmbeddingServer() as embeddings:
        home: Path = tmp_path_factory.mktemp(request.param)
        with System(home, {**embeddings.env, "MEMORYOS_MEMORY__PIPELINE": request.param}) as running:
            yield running


def session(system: System, user: str) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        _, page, _ = system.get(f"/v1/memory/sessions/s?user_id={user}&page_size=100&page_token={token}")
        found += [turn["event_id"] for turn in page.get("turns", ())]
        token = page.get("next_page_token", "")
        if not token:
            return found


def until_done(system: System, user: str, events: set[str], seconds: float = 120) -> list[str]:
    end = time.monotonic() + seconds
    while set(found := session(system, user)) != events:
        assert time.monotonic() < end, f"{len(found)} of {len(events)}"
        time.sleep(0.2)
    while system.get("/v1/admin/queue")[1]["depth"]:
        assert time.monotonic() < end, "the queue does not empty"
        time.sleep(0.2)
    return found


@pytest.mark.timeout(300)
async def test_sixteen_writers_when_they_write_for_one_user_then_each_ones_order_is_kept(system: System) -> None:
    user = f"one-{uuid.uuid4()}"
    async with AsyncClient(system.grpc) as client:

        async def write(writer: int) -> None:
            for n in range(15):
                content = f"Writer {writer} says that house {writer * 100 + n} has {n} windows."
                await client.add(content, user_id=user, event_id=f"{writer}-{n}", session_id="s")

        await asyncio.gather(*map(write, range(16)))
    found = until_done(system, user, {f"{w}-{n}" for w in range(16) for n in range(15)})
    assert max(Counter(found).values()) == 1
    for writer in range(16):
        assert [e for e in found if e.startswith(f"{writer}-")] == [f"{writer}-{n}" for n in range(15)]
    _, answer, _ = system.get(f"/v1/memory/events/15-14?user_id={user}")
    assert answer["state"] in ("stored", "merged")


@pytest.mark.timeout(300)
async def test_two_hundred_users_when_they_write_at_once_then_nobodys_turn_is_lost_or_anothers(system: System) -> None:
    run = uuid.uuid4().hex[:8]
    async with AsyncClient(system.grpc) as client:

        async def write(user: int) -> None:
            for n in range(4):
                content = f"User {user} owns house {user * 7} on street {n}."
                await client.add(content, user_id=f"{run}-{user}", event_id=f"{user}-{n}", session_id="s")

        await asyncio.gather(*map(write, range(200)))
    for user in range(200):
        events = [f"{user}-{n}" for n in range(4)]
        assert until_done(system, f"{run}-{user}", set(events)) == events


def test_short_term_when_a_turn_was_acknowledged_then_it_is_there_at_once_and_searchable_soon(system: System) -> None:
    user = f"soon-{uuid.uuid4()}"
    body = {"user_id": user, "role": "user", "content": "The heron stands on the pier.", "event_id": "e1"}
    assert system.post("/v1/memory/add", body)[0] == 200
    sync = system.env["MEMORYOS_MEMORY__PIPELINE"] == "sync"
    end = time.monotonic() + 20
    while True:
        _, answer, _ = system.post("/v1/memory/retrieve", {"user_id": user, "query": "heron pier"})
        assert [turn["content"] for turn in answer["short_term"]] == ["The heron stands on the pier."]
        if [episode["event_id"] for episode in answer["episodes"]] == ["e1"]:
            return
        assert not sync
        assert time.monotonic() < end
        time.sleep(0.05)


def test_short_term_when_it_ends_before_a_talk_counts_as_idle_then_its_turns_are_summarised_by_then(
    tmp_path: Path,
) -> None:
    with System(tmp_path, {"MEMORYOS_MEMORY__SHORT_TERM_TTL_SECONDS": "10"}) as system:  # idle only after half an hour
        system.start()
        said = {"user_id": "ann", "role": "user", "content": "I planted seven cherry trees behind the old barn."}
        assert system.post("/v1/memory/add", said)[0] == 200
        deadline = time.monotonic() + 60
        while not mid_term(system, "ann", "cherry trees"):
            assert time.monotonic() < deadline
            time.sleep(0.5)


def mid_term(system: System, user: str, query: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = system.post("/v1/memory/retrieve", {"user_id": user, "query": query})[1][
        "mid_term"
    ]
    return found
