"""A provider that costs little: `python -m bench.gateway.provider PORT`. It answers what the last message says.

`events=N rate=R` gives a stream of N events, R in a second (0: as fast as they are taken); each holds `@<ns>;`, the
monotonic time at which it was written. Anything else gives a JSON answer.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"fake","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"' + b"All is well. " * 20 + b'"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":20,"completion_tokens":60,"total_tokens":80}}'
)
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_ASKED = re.compile(rb"events=(\d+) rate=(\d+)")
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")


def event(delta: bytes, finish: bytes = b"null") -> bytes:
    """An event as a chunk of HTTP."""
    data = (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"fake","choices":'
        b'[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n' % (delta, finish)
    )
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST = event(b"{}", b'"stop"') + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Provider(asyncio.Protocol):
    """A connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps it."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._buffer = b""
        self._free = asyncio.Event()
        self._free.set()
        self._streams: set[asyncio.Task[None]] = set()

    def connection_lost(self, _: Exception | None) -> None:
        """Ends its stream."""
        self._free.set()
        for task in self._streams:
            task.cancel()

    def pause_writing(self) -> None:
        """The reader is slower."""
        self._free.clear()

    def resume_writing(self) -> None:
        """The reader takes more."""
        self._free.set()

    def data_received(self, data: bytes) -> None:
        """Answers a request that is whole."""
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if len(body) < (int(length[1]) if length else 0) or not head:
            return
        self._buffer = b""
        if asked := _ASKED.search(body):
            task = asyncio.get_running_loop().create_task(self._stream(int(asked[1]), int(asked[2])))
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
        else:
            self._transport.write(JSON)

    async def _stream(self, events: int, rate: int) -> None:
        self._transport.write(STREAM)
        begin = time.monotonic()
        for number in range(events):
            if rate and (wait := begin + number / rate - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self._transport.write(event(b'{"content":"@%d;"}' % time.monotonic_ns()))
            await self._free.wait()
        self._transport.write(LAST)


async def main(port: int) -> None:
    """Serves until it is ended."""
    await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port, backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
