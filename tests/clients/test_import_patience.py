from __future__ import annotations

import asyncio
from typing import Any

import grpc

from memoryos.aio import AsyncClient
from memoryos.importing.items import Turn
from memoryos.importing.run import ATTEMPTS, send
from tests.clients.conftest import Script, failing

TURN = Turn("line 1", "Tea.", "user", "e1")


def imported(address: str) -> Any:
    async def run() -> Any:
        async with AsyncClient(address, user_id="ann") as client:
            return await send(client, iter([TURN]), None, first_pause=0.001)

    return asyncio.run(run())


def test_import_when_the_server_says_later_often_then_it_waits_and_loses_nothing(address: str, script: Script) -> None:
    busy = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too much waits", "TOO_MANY_REQUESTS", retry=0.01)
    script.failures = [busy] * (ATTEMPTS * 3)
    assert imported(address).turns == 1
    assert len(script.requests) == ATTEMPTS * 3 + 1


def test_import_when_the_server_refuses_without_saying_when_then_it_gives_up(address: str, script: Script) -> None:
    script.failures = [failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too much", "TOO_MANY_REQUESTS")] * 100
    assert "does not take it" in imported(address).stopped
    assert len(script.requests) == ATTEMPTS
