from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.bridge.chat_server import ANSWER, run_chat_server
from tests.bridge.conftest import until
from tests.scratch.serve import serve_scratch
from tests.system import free_port


@asynccontextmanager
async def process(**settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MEMORYOS_")} | settings
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "memoryos_bridge", env=env, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def answered(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(200):
            try:
                return await client.get(url)
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
    raise AssertionError("the bridge does not answer")


async def test_process_when_stopped_then_requests_under_way_end_and_the_log_is_json_lines() -> None:
    port = free_port()
    async with run_chat_server() as (servicer, address):
        settings: dict[str, Any] = {
            "MEMORYOS_BRIDGE__LISTEN": f"127.0.0.1:{port}",
            "MEMORYOS_BRIDGE__SERVER": address,
            "MEMORYOS_SERVICE_HOST": "10.0.0.1",
        }
        async with process(**settings) as running:
            url = f"http://127.0.0.1:{port}"
            assert (await answered(f"{url}/v1/models")).status_code == 200
            await answered(f"{url}/v1/secret-in-path")
            async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(10):
                servicer.gate.clear()
                waiting = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json={}, timeout=10))
                await until(lambda: servicer.running == 1)
                running.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
                servicer.gate.set()
                assert (await waiting).content == ANSWER
            out, err = await asyncio.wait_for(running.communicate(), 10)
    assert running.returncode == 0
    assert out == b""
    first, *lines = err.decode().splitlines()
    assert "MEMORYOS_SERVICE_HOST" in first
    events = [json.loads(line) for line in lines]
    assert events[0]["event"] == "bridge_starting"
    assert [e["route"] for e in events if e["event"] == "http"] == ["/v1/models", "unmatched", "/v1/chat/completions"]
    assert b"secret-in-path" not in err


async def test_process_when_settings_would_open_it_then_it_refuses_and_says_why() -> None:
    async with (
        serve_scratch() as address,
        process(MEMORYOS_BRIDGE__LISTEN="0.0.0.0:0", MEMORYOS_BRIDGE__SERVER=address) as running,
    ):
        _, err = await asyncio.wait_for(running.communicate(), 20)
    assert running.returncode == 2
    assert b"insecure" in err


async def test_process_when_the_port_is_taken_then_it_says_so_and_fails() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        async with process(MEMORYOS_BRIDGE__LISTEN=listen, MEMORYOS_BRIDGE__SERVER="127.0.0.1:1") as running:
            _, err = await asyncio.wait_for(running.communicate(), 20)
    assert running.returncode != 0
    assert b"address already in use" in err
