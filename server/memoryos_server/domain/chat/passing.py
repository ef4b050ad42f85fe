"""The provider's bytes on their way to the client: which are given on, which wait, and how long the next are waited for.

Only whole events are given on. What breaks off in the middle of one would reach the client as an event that it cannot read,
in front of the error that says what happened; and nothing is lost, because nobody can use half an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from memoryos_server.domain.chat.sse import Tee
from memoryos_server.domain.core.faults import DeadlineExceeded, Upstream

MOST_HELD_BYTES = 64 * 1024
"""What is longer is given on before it is whole."""

LINGER_AFTER_FINISH_SECONDS = 5.0
LINGER_AFTER_DONE_SECONDS = 1.0


class Held:
    """What came and is not given on yet."""

    def __init__(self, tee: Tee) -> None:
        """Starts with nothing; the tee has read what is added here."""
        self._tee = tee
        self._bytes = bytearray()
        self._given = 0
        self._released = False

    def add(self, chunk: bytes) -> None:
        """Takes what came."""
        self._bytes += chunk

    def release(self) -> None:
        """Holds nothing back from now on."""
        self._released = True

    def due(self) -> bytes:
        """What may go now: whole events, up to the line `[DONE]`. Behind that event nothing ever goes."""
        tee = self._tee
        end = self._given + len(self._bytes)
        if not self._released:
            if not tee.blind and end - tee.whole_to <= MOST_HELD_BYTES:
                end = tee.whole_to
            if tee.done_at is not None:
                end = min(end, tee.done_at)
        if tee.done_to is not None:
            end = min(end, tee.done_to)
        size = max(0, end - self._given)
        taken = bytes(self._bytes[:size])
        del self._bytes[:size]
        self._given += size
        if self._given == tee.done_to:
            self._bytes.clear()
        return taken


async def following(source: AsyncGenerator[bytes, None], tee: Tee) -> bytes | None:
    """The next bytes, or None at the end. An answer that has said its last word is not waited for long.

    Raises:
        Upstream: The connection broke before the answer was whole.
        DeadlineExceeded: It fell silent before.
    """
    linger = None
    if tee.done:
        linger = LINGER_AFTER_DONE_SECONDS
    elif tee.finished or tee.error:
        linger = LINGER_AFTER_FINISH_SECONDS
    try:
        async with asyncio.timeout(linger):
            return await anext(source, None)
    except TimeoutError:
        return None
    except DeadlineExceeded:
        if linger is not None:
            return None
        raise
    except Upstream:
        if tee.done or tee.error:  # all is said; how the connection ends is nobody's concern
            return None
        raise


async def closing(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The chunks, closing their source when closed."""
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
