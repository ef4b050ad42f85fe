"""The HTTP server's protocol, mended in four places: long heads, slow heads, what is no HTTP, offers of another protocol.

By itself it gathers a head of any length, waits for it for ever, answers what it cannot read with plain text, and loses the
body of a request that offers to go on in another protocol, as some clients do with their first one (`Upgrade: h2c`).
"""

from __future__ import annotations

import asyncio
import re
import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memoryos_bridge.errors import BridgeError
from memoryos_bridge.guards import GUARDS

MAX_HEAD_BYTES = 64 * 1024
"""The longest head: request line and headers. What arrives in one piece with its end may be longer by that piece."""

MAX_HEADERS = 200
"""The most headers of a request."""

HEAD_SECONDS = 10.0
"""How long a head may take to arrive whole, if the settings say nothing else."""

_OFFER = b"\r\nupgrade:"
_OFFERS = re.compile(re.escape(_OFFER), re.IGNORECASE)
_END = b"\r\n\r\n"


class _TooMany(Exception):
    """A request has too many headers; the parser stops at it."""


def heads(seconds: float) -> type[Heads]:
    """The protocol of a bridge whose clients have so many seconds for a head."""
    return type("Heads", (Heads,), {"head_seconds": seconds})


class Heads(HttpToolsProtocol):
    """One connection.

    Attributes:
        head_seconds: How long a head may take to arrive whole; 0: any time.
    """

    head_seconds = HEAD_SECONDS

    _head_bytes = 0
    _headers = 0
    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True
    _begun = False
    _held = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base has it
        """A client has connected."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._end_timer()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        """From now on the time of a head runs, unless it does already."""
        if self._head_timer is None and self.head_seconds:
            self._head_timer = self.loop.call_later(self.head_seconds, self._late)

    def _end_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self.pipeline or (self.cycle is not None and not self.cycle.response_complete):
            # An answer to what came before is under way, and must not be cut.
            self._expect_head()
        elif self._begun:
            self._refuse(
                408, "Request Timeout", f"The head of the request took longer than {self.head_seconds:g} seconds"
            )
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Takes what the client sent, unless its head grows too long."""
        if self._in_head:
            self._expect_head()
            data = self._without_offer(data)
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.logger.warning("A request's head is too long.")
            self._refuse(431, "Request Header Fields Too Large", f"The head is longer than {MAX_HEAD_BYTES} bytes")

    def _without_offer(self, data: bytes) -> bytes:
        """A piece of a head (and what follows it) under whose headers there is no `Upgrade`: an offer may be ignored."""
        data, self._held = self._held + data, b""
        end = data.find(_END)
        if end >= 0:
            return _OFFERS.sub(b"\r\nx-ignored:", data[:end]) + data[end:]
        data = _OFFERS.sub(b"\r\nx-ignored:", data)
        # The piece may end amid the name: that much waits for the next.
        for size in range(min(len(_OFFER) - 1, len(data)), 0, -1):
            if _OFFER.startswith(data[-size:].lower()):
                data, self._held = data[:-size], data[-size:]
                break
        return data

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head = self._begun = True
        self._head_bytes = 0
        self._headers = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has come."""
        self._headers += 1
        if self._headers > MAX_HEADERS:
            raise _TooMany
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A head has ended."""
        self._in_head = False
        self._end_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request has ended; the next head may follow."""
        super().on_message_complete()
        self._in_head = True
        self._begun = False
        self._head_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP in the shape of every error."""
        if self.transport.is_closing():
            return
        if self._headers > MAX_HEADERS:
            self._refuse(431, "Request Header Fields Too Large", f"The request has more than {MAX_HEADERS} headers")
        else:
            self._refuse(400, "Bad Request", "The request is not valid HTTP")

    def _refuse(self, status: int, phrase: str, message: str) -> None:
        code = {431: "head_too_large", 408: "request_timeout"}.get(status, "invalid_argument")
        body = BridgeError(status, message, code).body()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"X-Request-ID: {uuid.uuid4().hex}\r\nConnection: close\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in GUARDS.items())
            + "\r\n"
        )
        # Amid an answer there is no place for another.
        cycle = self.cycle
        if not self.pipeline and (cycle is None or cycle.response_complete or not cycle.response_started):
            self.transport.write(head.encode("ascii") + body)
        self.transport.close()
