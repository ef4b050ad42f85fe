"""The HTTP server's protocol, mended in three places: long heads, what is no HTTP, and offers of another protocol.

By itself it gathers a head of any length, answers what it cannot read with plain text, and loses the body of a request
that offers to go on in another protocol, as some clients do with their first one (`Upgrade: h2c`).
"""

from __future__ import annotations

import re
import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memoryos_bridge.errors import BridgeError
from memoryos_bridge.guards import GUARDS

MAX_HEAD_BYTES = 64 * 1024
"""The longest head: request line and headers. What arrives in one piece with its end may be longer by that piece."""

_OFFER = b"\r\nupgrade:"
_OFFERS = re.compile(re.escape(_OFFER), re.IGNORECASE)
_END = b"\r\n\r\n"


class Heads(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _in_head = True
    _held = b""

    def data_received(self, data: bytes) -> None:
        """Takes what the client sent, unless its head grows too long."""
        if self._in_head:
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
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head has ended."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request has ended; the next head may follow."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP in the shape of every error."""
        if not self.transport.is_closing():
            self._refuse(400, "Bad Request", "The request is not valid HTTP")

    def _refuse(self, status: int, phrase: str, message: str) -> None:
        code = "head_too_large" if status == 431 else "invalid_argument"
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
