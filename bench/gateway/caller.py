"""A client that costs little: it sends prepared bytes and reads answers as they come, a call at a time on each connection."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import cast

_STAMP = re.compile(rb"@(\d+);")
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
_FRAMING = re.compile(rb"\r\n[0-9a-f]+\r\n")
"""Between two chunks of HTTP, which may part a stamp. No event holds a carriage return."""

_HELD_BACK = 32
"""Bytes of a piece that may be the first half of a stamp."""


class Caller(asyncio.Protocol):
    """A connection.

    Attributes:
        held: For each event of every stream, the seconds from its writing to its reading.
    """

    def __init__(self) -> None:
        """Not connected yet."""
        self.held: list[float] = []
        self._done: asyncio.Future[None] | None = None
        self._tail = b""
        self._length: int | None = None
        self._head = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps it."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def connection_lost(self, error: Exception | None) -> None:
        """Fails the call that waits."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionError("the answer was cut"))

    def data_received(self, data: bytes) -> None:
        """Reads a piece."""
        now = time.monotonic_ns()
        data = self._tail + data
        if self._head:
            head, whole, body = data.partition(b"\r\n\r\n")
            if not whole:
                self._tail = data
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self._fail(data)
                return
            self._head = False
            length = _LENGTH.search(head)
            self._length, data = (int(length[1]) if length else None), body
        if self._length is not None:
            self._tail = data
            if len(data) >= self._length:
                self._end()
            return
        ended, last = data.endswith(b"0\r\n\r\n"), 0
        data = _FRAMING.sub(b"", data)
        for found in _STAMP.finditer(data):
            self.held.append((now - int(found[1])) / 1e9)
            last = found.end()
        self._tail = data[max(last, len(data) - _HELD_BACK) :]
        if ended and b'"error"' in data:
            self._fail(data)
        elif ended:
            self._end()

    def _fail(self, data: bytes) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(RuntimeError(data[-2000:].decode(errors="replace")))

    def _end(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def call(self, request: bytes) -> float:
        """Makes a call; gives its seconds to the end of the answer.

        Raises:
            RuntimeError: the answer is no 200, or an error.
            ConnectionError: it was cut.
        """
        self._head, self._tail = True, b""
        self._done = asyncio.get_running_loop().create_future()
        begin = time.perf_counter()
        self._transport.write(request)
        await self._done
        return time.perf_counter() - begin

    def close(self) -> None:
        """Leaves."""
        self._transport.close()


async def connect(address: str, number: int = 1) -> list[Caller]:
    """So many connections."""
    host, port = address.split(":")
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Caller, host, int(port)))[1] for _ in range(number)]


def request(content: str, headers: Mapping[str, str], *, stream: bool = False) -> bytes:
    """A chat as its bytes."""
    messages = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": content}]
    asked = {"model": "fake", "messages": messages} | ({"stream": True} if stream else {})
    body = json.dumps(asked).encode()
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
