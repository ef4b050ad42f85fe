"""Clients that are slow on purpose: heads and bodies in drops, and readers that read nothing. All over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time

import pytest

from tests.bridge.chat_server import run_chat_server
from tests.bridge.test_process import process
from tests.scratch.serve import serve_scratch
from tests.system import free_port


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection, once somebody listens."""
    for _ in range(600):
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
    raise AssertionError("nobody listens")


async def dripped(port: int, first: bytes, drop: bytes, pause: float = 0.1) -> tuple[bytes, float]:
    """What is answered to who sends one piece and then drops, and after how many seconds."""
    reader, writer = await connected(port)
    began = time.monotonic()
    answer = asyncio.create_task(reader.read())
    try:
        writer.write(first)
        while not answer.done() and time.monotonic() - began < 20:
            await asyncio.sleep(pause)
            if drop and not answer.done():
                writer.write(drop)
        return await asyncio.wait_for(answer, 1), time.monotonic() - began
    finally:
        writer.close()


def settings(server: str, port: int, **more: str) -> dict[str, str]:
    return {"MEMORYOS_BRIDGE__LISTEN": f"127.0.0.1:{port}", "MEMORYOS_BRIDGE__SERVER": server, **more}


def error(answer: bytes) -> tuple[bytes, str, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    told = json.loads(body)["error"]
    return head.split(b"\r\n")[0], told["type"], told["code"]


HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
BODY = (
    b"POST /v1/scratch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"
)
CHAT = BODY.replace(b"/v1/scratch", b"/v1/chat/completions")


async def test_head_when_it_comes_in_drops_or_not_at_all_then_the_connection_is_ended() -> None:
    port = free_port()
    async with serve_scratch() as server, process(**settings(server, port, MEMORYOS_BRIDGE__HEAD_TIMEOUT_SECONDS="1")):
        for first, drop in ((HEAD, b"X-A: b\r\n"), (b"G", b"")):
            answer, seconds = await dripped(port, first, drop)
            assert error(answer) == (b"HTTP/1.1 408 Request Timeout", "Timeout", "request_timeout")
            assert 0.9 < seconds < 8
        answer, _ = await dripped(port, b"", b"")
        assert answer == b""
        # After an answer as before one: what is no head yet keeps no connection open.
        answer, seconds = await dripped(port, HEAD + b"\r\n", b"\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert seconds < 8


async def test_head_when_the_next_one_waits_behind_a_long_answer_then_that_answer_is_not_cut() -> None:
    port = free_port()
    async with (
        run_chat_server() as (servicer, server),
        process(**settings(server, port, MEMORYOS_BRIDGE__HEAD_TIMEOUT_SECONDS="0.5")),
    ):
        reader, writer = await connected(port)
        servicer.gate.clear()
        body = b"{}"
        head = CHAT.partition(b"Content-Length")[0] + b"Content-Length: 2\r\n\r\n"
        writer.write(head + body + b"GET /hea")
        await asyncio.sleep(1.5)
        servicer.gate.set()
        assert (await asyncio.wait_for(reader.readline(), 5)) == b"HTTP/1.1 200 OK\r\n"
        writer.close()


async def test_body_when_it_stops_or_comes_in_drops_then_408() -> None:
    port = free_port()
    async with (
        run_chat_server() as (_, server),
        process(**settings(server, port, MEMORYOS_BRIDGE__BODY_IDLE_SECONDS="1")),
    ):
        for drop in (b"", b" "):
            answer, seconds = await dripped(port, CHAT, drop)
            assert error(answer) == (b"HTTP/1.1 408 Request Timeout", "Timeout", "request_timeout")
            assert 0.9 < seconds < 8


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux cuts them off")
async def test_reader_when_it_reads_nothing_then_it_is_cut_off_and_its_call_ended() -> None:
    port = free_port()
    async with (
        run_chat_server() as (servicer, server),
        process(**settings(server, port, MEMORYOS_BRIDGE__READER_IDLE_SECONDS="1")) as running,
    ):
        servicer.frames = (b"data: " + b"x" * 65_000 + b"\n\n",) * 1000
        (await connected(port))[1].close()
        body = b'{"stream": true}'
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(CHAT.partition(b"Content-Length")[0] + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert running.stderr is not None
            async with asyncio.timeout(30):
                while True:
                    told = json.loads(await running.stderr.readline())
                    if told.get("route") == "/v1/chat/completions":
                        break
        assert not told["complete"]
        assert told["bytes_out"] < 30_000_000
