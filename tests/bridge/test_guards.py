"""The headers that browsers heed: on every answer, and no other than they were on streams."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re

import httpx
import pytest

from memoryos_bridge.guards import GUARDS
from tests.bridge.chat_server import run_chat_server
from tests.bridge.conftest import System, run_bridge, run_system


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [("GET", "/health", 200), ("GET", "/v1/nothing", 404), ("DELETE", "/health", 405), ("HEAD", "/health", 200)],
)
async def test_guards_when_anything_is_answered_then_they_are_there(
    http: httpx.AsyncClient, verb: str, path: str, status: int
) -> None:
    answer = await http.request(verb, path)
    assert answer.status_code == status
    for name, value in GUARDS.items():
        assert answer.headers[name] == value
    assert "strict-transport-security" not in answer.headers


async def test_guards_when_it_is_no_http_then_they_are_there(system: System) -> None:
    reader_answer = await sent_head(system, b"FOO / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for name, value in GUARDS.items():
        assert f"{name}: {value}".encode() in reader_answer


async def sent_head(system: System, piece: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", system.bridge.port)
    writer.write(piece)
    head, _, _ = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    writer.close()
    return head


async def test_guards_when_chat_streams_then_it_is_still_marked_as_a_stream() -> None:
    async with run_chat_server() as (_, address), run_bridge(address) as bridge:
        answer = await bridge.client.post("/v1/chat/completions", json={"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers.get_list("cache-control") == ["no-cache"]
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_docs_when_shown_then_their_policy_allows_what_they_need_and_nothing_else(
    http: httpx.AsyncClient,
) -> None:
    answer = await http.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{hashed}'" in policy["script-src"]
    assert not re.search(r"\son[a-z]+=|javascript:|https?://", answer.text)
    asset = await http.get("/docs/swagger-ui.css")
    assert asset.headers["cache-control"] == "public, max-age=86400"


async def test_cors_when_configured_then_guards_do_not_stand_in_its_way() -> None:
    async with run_system(bridge={"cors_origins": ("https://a.example",)}) as system:
        answer = await system.http.get("/health", headers={"Origin": "https://a.example"})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "cross-origin-resource-policy" not in answer.headers
