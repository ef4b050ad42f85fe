"""One system for all tests here, server and bridge as processes; each test brings a provider of its own on the same port."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.system import System, free_port
from tests.upstream import Reply, Upstream

SILENCE_SECONDS = 3.0
"""How long the system waits for a first byte, and between two data events."""


@pytest.fixture(scope="session")
def provider_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider_port: int) -> Iterator[System]:
    """A whole system, auth off, whose provider has no list of models."""
    settings = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{provider_port}/v1",
        "OPENAI_API_KEY": "provider-key",
        "MEMORYOS_UPSTREAM__CONNECT_TIMEOUT_SECONDS": "1",
        "MEMORYOS_UPSTREAM__FIRST_BYTE_TIMEOUT_SECONDS": str(SILENCE_SECONDS),
        "MEMORYOS_UPSTREAM__IDLE_TIMEOUT_SECONDS": str(SILENCE_SECONDS),
        # What is tested here is what memory does, not what it leaves out on a busy machine.
        "MEMORYOS_MEMORY__RECALL_DEADLINE_SECONDS": "5",
        "MEMORYOS_MEMORY__REMEMBER_DEADLINE_SECONDS": "5",
    }
    with System(tmp_path_factory.mktemp("gateway"), settings) as running:
        yield running


@pytest.fixture
async def upstream(provider_port: int) -> AsyncIterator[Upstream]:
    async with Upstream(None, provider_port) as running:
        yield running


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in other processes
            await asyncio.sleep(0.01)


@dataclass
class Answered:
    """An answer as its bytes came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.json["error"])


class Client:
    """Calls the bridge and changes nothing of what comes."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def post(self, path: str, body: Any, **headers: str) -> Answered:
        given = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=io.BytesIO(data), headers=given) as answer:
            return Answered(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    async def chat(self, body: Any, *, user: str = "", **headers: str) -> Answered:
        """A chat; without a user memory is off."""
        who = {"X_User_ID": user} if user else {"X_MemoryOS_Memory": "off"}
        return await self.post("/v1/chat/completions", body, **(who | headers))

    async def recalling(
        self, upstream: Upstream, body: Any, *, user: str, reply: Reply | None = None, **headers: str
    ) -> Answered:
        """A chat with all of the user's memory; one that a busy machine kept from it is forgotten and repeated."""
        for _ in range(100):
            if reply is not None:
                upstream.will(reply)
            answer = await self.chat(body, user=user, **headers)
            if "x-memoryos-status" not in answer.headers:
                return answer
            upstream.received.pop()
            await asyncio.sleep(0.1)
        raise AssertionError("memory does not answer")

    async def kept(self, user: str, event_id: str) -> None:
        """Waits until a turn is kept, which a busy machine may do behind the answer."""
        async with asyncio.timeout(20):
            while True:
                url = f"{self.url}/v1/memory/events/{event_id}"
                async with self.session.get(url, headers={"X-User-ID": user}) as answer:
                    if answer.status == 200:
                        return
                await asyncio.sleep(0.02)

    async def keeps(self, user: str, *said: tuple[str, str]) -> None:
        """Checks what is remembered of a user, oldest first, once all of it is kept."""
        for _ in range(100):
            found = await self.said(user)
            if len(found) >= len(said):
                break
            await asyncio.sleep(0.1)
        assert found == list(said)

    async def said(self, user: str) -> list[tuple[str, str]]:
        """(role, content) of what is remembered of a user, oldest first."""
        found = await self.post("/v1/memory/retrieve", {"user_id": user, "query": "anything"})
        return [(turn["role"], turn["content"]) for turn in found.json["short_term"]]


@pytest.fixture
async def client(gateway: System) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=60), auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        yield Client(gateway.url, session)
