from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import uvicorn
from scratch.v1 import scratch_service_pb2

from memoryos import schema
from memoryos.settings import BridgeSettings, LogSettings, Settings
from memoryos.v1 import chat_service_pb2, memory_service_pb2, system_service_pb2
from memoryos_bridge import logs
from memoryos_bridge.app import create_app
from memoryos_bridge.heads import Heads
from tests.scratch.serve import Scratch, run_scratch

SCRATCH = scratch_service_pb2.DESCRIPTOR
ALL = (system_service_pb2.DESCRIPTOR, chat_service_pb2.DESCRIPTOR, memory_service_pb2.DESCRIPTOR, SCRATCH)


@dataclass
class Bridge:
    """A running bridge and a client of it."""

    url: str
    port: int
    client: httpx.AsyncClient
    log: io.BytesIO = field(default_factory=io.BytesIO)

    def lines(self, event: str = "http") -> list[dict[str, Any]]:
        parsed = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in parsed if line["event"] == event]


@asynccontextmanager
async def run_bridge(
    server: str, methods: Sequence[schema.Method] | None = None, *, settings: Settings | None = None, **bridge: Any
) -> AsyncIterator[Bridge]:
    """Runs a bridge on a free port until left; `bridge` are fields of BridgeSettings."""
    base = settings or Settings()
    made = replace(base, bridge=BridgeSettings(**{"server": server} | bridge), log=LogSettings(format="json"))
    log = io.BytesIO()
    app = create_app(made, methods or schema.load(ALL), log=logs.make(made.log, log))
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=Heads,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    uvicorn_server = uvicorn.Server(config)
    task = asyncio.create_task(uvicorn_server.serve())
    try:
        while not uvicorn_server.started:
            if task.done():
                await task
                raise AssertionError("the bridge did not start")
            await asyncio.sleep(0.01)
        port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
            yield Bridge(url, port, client, log)
    finally:
        uvicorn_server.should_exit = True
        await task


async def until(condition: Callable[[], Any], seconds: float = 2.0) -> float:
    """Waits until a condition holds; how long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        if loop.time() - began > seconds:
            raise AssertionError("it did not come true")
        await asyncio.sleep(0.005)
    return loop.time() - began


@dataclass
class System:
    """A scratch server and a bridge to it."""

    scratch: Scratch
    bridge: Bridge

    @property
    def http(self) -> httpx.AsyncClient:
        return self.bridge.client


@asynccontextmanager
async def run_system(*, bridge: dict[str, Any] | None = None, **server: Any) -> AsyncIterator[System]:
    async with AsyncExitStack() as stack:
        scratch = await stack.enter_async_context(run_scratch(**server))
        made = await stack.enter_async_context(run_bridge(scratch.address, **(bridge or {})))
        yield System(scratch, made)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with run_system() as made:
        yield made


@pytest.fixture
async def http(system: System) -> httpx.AsyncClient:
    return system.http
