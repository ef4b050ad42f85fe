"""The frames that the vector process and its clients exchange: a 4-byte big-endian length, then msgpack.

A request is `[id, op, arguments]`; its answer `[id, None, result]` or `[id, [kind, message], None]`, with kind
`invalid` (the request was wrong) or `failed`. Answers come in the order of requests. Dense vectors travel as
float32 bytes in the machine's own order, for both ends are on one machine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgpack

LEXICAL = "lexical"
"""The name of the sparse vector, and of its leg in a search."""

MAX_FRAME = 64 * 1024 * 1024
"""The longest frame taken, in bytes."""

_LENGTH = struct.Struct(">I")
_msgpack: Any = msgpack  # ships no types


class FrameError(ValueError):
    """What came is not a frame; the connection cannot go on."""


def pack(message: Any) -> bytes:
    """A message as a frame.

    Raises:
        FrameError: It is over `MAX_FRAME`.
    """
    body: bytes = _msgpack.packb(message, use_bin_type=True)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a frame of {len(body)} bytes is too long")
    return _LENGTH.pack(len(body)) + body


class Splitter:
    """Turns a stream of bytes back into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that `data` completes, in order.

        Raises:
            FrameError: A length is over `MAX_FRAME` or a body is not msgpack.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > MAX_FRAME:
                    raise FrameError(f"a frame of {length} bytes is too long")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(memoryview(self._buffer)[start + _LENGTH.size : end])
                start = end
                try:
                    message = _msgpack.unpackb(body, raw=False, strict_map_key=False)
                except (ValueError, _msgpack.UnpackException) as error:
                    raise FrameError("a frame holds no msgpack") from error
                yield message
        finally:
            del self._buffer[:start]
