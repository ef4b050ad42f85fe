"""One HTTP request and its answer, over raw ASGI.

It reads bodies under a limit, knows when the client leaves, and keeps what the boundary logs and counts. Nothing here
knows what is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from memoryos_bridge.errors import BridgeError, ClientGone

KEY = "memoryos.exchange"
"""Where the exchange stands in the ASGI scope."""

BODY_IDLE_SECONDS = 30.0
"""How long a body may bring nothing, if the settings say nothing else."""

_SLOWEST_BYTES = 1024
"""How many bytes a second a body must bring at least, all in all, beyond that time."""

_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_SECONDS = 5.0


class Cancellable(Protocol):
    """A call that can be ended early."""

    def cancel(self) -> bool:
        """Ends the call."""


class Watch:
    """Cancels the call under way once the client has left.

    Attributes:
        call: The call under way, or None.
        gone: The client has left.
    """

    __slots__ = ("call", "gone")

    def __init__(self) -> None:
        """Watches nothing yet."""
        self.call: Cancellable | None = None
        self.gone = False

    def leave(self) -> None:
        """Notes that the client has left."""
        self.gone = True
        if self.call is not None:
            self.call.cancel()


class Exchange:
    """One request and its answer.

    Attributes:
        scope: The ASGI scope.
        verb: The HTTP method in upper case.
        headers: Lower-case name -> values, as bytes.
        request_id: The id of the request.
        trace_id: The id of the trace if a span is made of the request, else "".
        route: The route's template once one matched, else `unmatched`; what logs and metrics show.
        success_false: Errors carry `"success": false`.
        extra: Headers added to whatever is answered.
        status: The status of the answer, 0 before there is one; 499 if the client left first.
        code: The error's code, or "".
        started: The head of the answer is sent.
        completed: The answer is sent whole.
        bytes_in: Bytes of the request's body read.
        bytes_out: Bytes of the answer's body sent.
        body_idle: How long the body may bring nothing, in seconds; 0: any time.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, request_id: str = "", body_idle: float = BODY_IDLE_SECONDS
    ) -> None:
        """Begins with the request's head."""
        self.scope = scope
        self.verb: str = scope["method"]
        self.headers: dict[str, list[bytes]] = {}
        for name, value in scope["headers"]:
            self.headers.setdefault(name.decode("latin-1").lower(), []).append(value)
        self.request_id = request_id
        self.trace_id = ""
        self.route = "unmatched"
        self.success_false = False
        self.extra: dict[str, str] = {}
        self.status = 0
        self.code = ""
        self.started = False
        self.completed = False
        self.bytes_in = 0
        self.bytes_out = 0
        self.body_idle = body_idle
        self._receive = receive
        self._send = send

    def header(self, name: str) -> str | None:
        """The value of a header that may be given once, as Latin-1; None if it is absent.

        Raises:
            BridgeError: It is given several times with different values (400).
        """
        values = self.headers.get(name)
        if not values:
            return None
        if any(value != values[0] for value in values):
            raise BridgeError(400, f"The header {name} is given more than once", "invalid_argument", param=name)
        return values[0].decode("latin-1")

    async def body(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes.

        Raises:
            BridgeError: It is larger (413), or does not arrive in time (408).
            ClientGone: The client left before it was complete.
        """
        chunks: list[bytes] = []
        declared = self.header("content-length") or ""
        over = declared.isdigit() and int(declared) > limit
        if not over or self.header("expect") is None:
            try:
                async with asyncio.timeout(self.body_idle or None) as timer:
                    began = asyncio.get_running_loop().time()
                    async for chunk in self._chunks():
                        over = over or self.bytes_in > limit
                        if over:
                            break
                        chunks.append(chunk)
                        if self.body_idle:
                            now = asyncio.get_running_loop().time()
                            # As long as something comes, and all in all not in drops.
                            slowest = began + self.body_idle + self.bytes_in / _SLOWEST_BYTES
                            timer.reschedule(min(now + self.body_idle, slowest))
            except TimeoutError:
                raise BridgeError(
                    408, "The body did not arrive in time", "request_timeout", headers={"Connection": "close"}
                ) from None
        if over:
            await self._discard()
            raise BridgeError(
                413,
                f"The body is larger than {limit} bytes",
                "too_large",
                details="Send less at a time; `memoryos import FILE` brings in files of any size",
                headers={"Connection": "close"},
            )
        return b"".join(chunks)

    async def _chunks(self) -> Any:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            self.bytes_in += len(chunk)
            yield chunk
            if not message.get("more_body", False):
                return

    async def _discard(self) -> None:
        # A client that is still sending would see a reset instead of the answer: hear it out, within reason.
        if self.header("expect") is not None:
            return
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                async for _ in self._chunks():
                    if self.bytes_in > _DISCARD_BYTES:
                        return
        except TimeoutError:
            return

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watches, once the body is read, for the client to leave; the call set on the watch is then cancelled."""
        watch = Watch()

        async def wait() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if not self.completed:
                watch.leave()

        task = asyncio.get_running_loop().create_task(wait())
        try:
            yield watch
        finally:
            task.cancel()

    async def start(self, status: int, content_type: str, headers: Mapping[str, str], length: int | None) -> None:
        """Sends the head of the answer."""
        self.status = status
        self.started = True
        pairs = [(b"content-type", content_type.encode("latin-1"))]
        if length is not None:
            pairs.append((b"content-length", b"%d" % length))
        for name, value in (self.extra | dict(headers)).items():
            pairs.append((name.lower().encode("latin-1"), value.encode("latin-1", "replace")))
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def write(self, chunk: bytes, *, last: bool = False) -> None:
        """Sends a piece of the body."""
        self.bytes_out += len(chunk)
        self.completed = last
        body = b"" if self.verb == "HEAD" else chunk
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Sends a whole answer."""
        await self.start(status, content_type, headers or {}, len(body))
        await self.write(body, last=True)

    async def fail(self, error: BridgeError) -> None:
        """Sends an error."""
        self.code = error.code
        await self.answer(error.status, error.body(success_false=self.success_false), headers=error.headers)
