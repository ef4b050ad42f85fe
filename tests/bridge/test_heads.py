from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from memoryos_bridge.heads import MAX_HEAD_BYTES
from tests.bridge.conftest import System


async def sent(system: System, *pieces: bytes) -> tuple[bytes, dict[str, Any]]:
    """Status line and JSON of what a raw connection is answered before it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", system.bridge.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return head.split(b"\r\n")[0], json.loads(body)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\r\n\r\n",
        b"FOO /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n{}",
        b"GET /v1/\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_connection_when_it_is_no_http_then_400_in_the_usual_shape(system: System, garbage: bytes) -> None:
    status, body = await sent(system, garbage)
    assert status == b"HTTP/1.1 400 Bad Request"
    assert body["error"]["type"] == "BadRequest"
    assert set(body["error"]) == {"type", "message", "details", "code", "param"}


@pytest.mark.parametrize("endless", [b"X-A%d: " + b"v" * 1000 + b"\r\n", b"v" * 1000])
async def test_head_when_it_does_not_end_then_refused_before_it_fills_memory(system: System, endless: bytes) -> None:
    first = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-First: "
    pieces = [first, b"v\r\n" if b":" in endless else b""]
    reader, writer = await asyncio.open_connection("127.0.0.1", system.bridge.port)
    for piece in pieces:
        writer.write(piece)
    total = 0
    answer = asyncio.create_task(reader.read())
    while not answer.done() and total < 20 * MAX_HEAD_BYTES:
        writer.write(endless.replace(b"%d", b"%d" % total))
        total += len(endless)
        await asyncio.sleep(0.0005)
    head = await asyncio.wait_for(answer, 5)
    writer.close()
    assert head.startswith(b"HTTP/1.1 431 ")
    assert total < 10 * MAX_HEAD_BYTES


async def test_head_when_long_but_allowed_then_served_again_and_again(system: System) -> None:
    long = {"X-Long": "v" * (MAX_HEAD_BYTES // 2)}
    for _ in range(5):
        assert (await system.http.get("/health", headers=long)).status_code == 200
    big = json.dumps({"model": "m", "messages": "x" * 500_000}).encode()
    answer = await system.http.post("/v1/chat/completions", content=big, headers={"Content-Type": "application/json"})
    assert answer.status_code != 431


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_request_when_it_offers_another_protocol_then_it_is_served_with_its_body(
    system: System, size: int
) -> None:
    body = b'["Upgrade: not a header"]'
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"UPGRADE: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    pieces = [request[at : at + size] for at in range(0, len(request), size)]
    status, answer = await sent(system, *pieces)
    assert status == b"HTTP/1.1 400 Bad Request"
    assert answer["error"]["message"] == "The body must be an object"
