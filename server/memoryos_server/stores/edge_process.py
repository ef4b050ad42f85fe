"""The process that holds the vector engine.

The engine keeps Python's interpreter lock in every call, a vacuum even for seconds, so it lives apart from the
server. It runs without a log of its own: writes are durable once `flush` returned, and the ledger replays what a
crash took. This process knows no user, no key and no plain text; it trusts whoever can open its socket, which lies
in a directory of mode 0700. It flushes and ends on SIGTERM and when its standard input ends, which is when its
parent is gone.

`python -m memoryos_server.stores.edge_process --directory D --socket S [--vector NAME=DIMENSION]... [--fingerprint F]`
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import uvloop

from memoryos_server.stores.edge_engine import Engine, Leg
from memoryos_server.stores.edge_ids import as_numbers
from memoryos_server.stores.edge_points import InvalidRequestError, Prepared
from memoryos_server.stores.edge_records import TakenError
from memoryos_server.stores.edge_shards import LayoutDiffersError, Shards
from memoryos_server.stores.frames import FrameError, Splitter, pack

LAYOUT_DIFFERS = 3
"""The exit status when the directory is laid out in a way that this version does not read."""

# Ten imports of the largest kind at once, or two whose histories are long.
_STAGED_BYTES = 512 * 1024 * 1024
_POINT_BYTES = 5_000  # terms, vectors, hashes
_QUESTIONS_OPEN = 256  # of a connection, some 50 kB each; of more, and of those whose callers left, the oldest goes


class Staged:
    """Points that one client has sent but not yet put. What it never puts goes with its connection.

    Of too many the oldest set is dropped: putting it then fails, and is tried anew.
    """

    def __init__(self) -> None:
        self._sets: dict[int, list[Prepared]] = {}
        self._sizes: dict[int, int] = {}

    def add(self, number: int, points: Sequence[Prepared]) -> None:
        """Adds points to a set.

        Raises:
            InvalidRequestError: The set is too large by itself.
        """
        self._sets.setdefault(number, []).extend(points)
        self._sizes[number] = self._sizes.get(number, 0) + sum(map(_size, points))
        while sum(self._sizes.values()) > _STAGED_BYTES:
            oldest = next(iter(self._sets))
            self.take(oldest)
            if oldest == number:
                raise InvalidRequestError("so much cannot become visible at once")

    def take(self, number: int) -> list[Prepared]:
        """A set, which is then no more.

        Raises:
            LookupError: It was never begun, or dropped.
        """
        if number not in self._sets:
            raise LookupError("the points are no longer staged")
        del self._sizes[number]
        return self._sets.pop(number)


def _size(point: Prepared) -> int:
    """About what a staged point takes in memory, in bytes."""
    return len(point.payload.get("t", "")) + len(point.payload.get("h", "")) + _POINT_BYTES


class Connection(asyncio.Protocol):
    """One client. Requests are answered in order; what is torn or malformed costs only its own connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._staged = Staged()
        self._found: OrderedDict[int, list[Leg]] = OrderedDict()
        self._splitter = Splitter()
        self._transport: asyncio.Transport | None = None
        self._operations: Mapping[str, Callable[..., Any]] = {
            **engine.operations,
            "stage": self._stage,
            "put": self._put,
            "put_staged": self._put_staged,
            "words": self._words,
            "search": self._search,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remembers where answers go."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answers what is complete."""
        try:
            for message in self._splitter.feed(data):
                if self._transport is None or self._transport.is_closing():
                    return
                self._transport.write(self._answer(message))
        except FrameError as error:
            print(f"a client was dropped: {error}", file=sys.stderr, flush=True)
            if self._transport is not None:
                self._transport.abort()

    def pause_writing(self) -> None:
        """Takes no requests from a client that does not read its answers."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Goes on once it has read."""
        if self._transport is not None:
            self._transport.resume_reading()

    def _answer(self, message: Any) -> bytes:
        if not isinstance(message, list) or len(message) != 3 or not isinstance(message[2], list):
            raise FrameError("a frame holds no request")
        number, name, arguments = message
        try:
            operation = self._operations.get(name)
            if operation is None:
                raise InvalidRequestError(f"no operation {name!r}")
            return pack([number, None, operation(*arguments)])
        except TakenError as error:
            return pack([number, ["taken", str(error)], None])
        except LookupError as error:
            kind = "invalid" if isinstance(error, KeyError) else "failed"
            return pack([number, [kind, f"{name}: {error}"], None])
        except (InvalidRequestError, TypeError, ValueError) as error:
            return pack([number, ["invalid", f"{name}: {type(error).__name__}: {error}"], None])
        except Exception as error:  # the engine raises bare Exception; one bad request must not end the process
            return pack([number, ["failed", f"{name}: {error}"], None])

    def _stage(self, number: int, points: Sequence[Mapping[str, Any]]) -> int:
        self._staged.add(number, [self._engine.points.prepare(point) for point in points])
        return self._engine.points.incarnation

    def _put(self, points: Sequence[Mapping[str, Any]]) -> int:
        return self._engine.records.put([self._engine.points.prepare(point) for point in points])

    def _words(self, number: int, *question: Any) -> None:
        """Looks up the words of a question whose vectors are still being made; `search` with this number goes on."""
        self._found[number] = self._engine.legs(*question)
        if len(self._found) > _QUESTIONS_OPEN:
            self._found.popitem(last=False)

    def _search(self, number: int | None, *question: Any) -> list[Any] | None:
        """None: what `words` found is no longer kept, or was found for another connection. Then words must be sent again."""
        if number is not None and number not in self._found:
            return None
        return self._engine.search([] if number is None else self._found.pop(number), *question)

    def _put_staged(self, number: int) -> int:
        return self._engine.records.put(self._staged.take(number))


async def serve(engine: Engine, socket: Path) -> None:
    """Answers clients until SIGTERM or the end of standard input."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    class Parent(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            stop.set()

    pipe, _ = await loop.connect_read_pipe(Parent, sys.stdin)
    server = await loop.create_unix_server(lambda: Connection(engine), str(socket))
    try:
        await stop.wait()
    finally:
        server.close()
        pipe.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the process; gives its exit status."""
    parser = argparse.ArgumentParser(prog="memoryos-vectors")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--vector", action="append", default=[], metavar="NAME=DIMENSION")
    parser.add_argument("--fingerprint", default="", help="tells models of the same names and dimensions apart")
    args = parser.parse_args(argv)
    dense = {name: int(size) for name, _, size in (text.rpartition("=") for text in args.vector)}
    # Ctrl-C reaches every process of a terminal; who stops this one is its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    as_numbers()
    try:
        engine = Engine(Shards.open(args.directory, dense, args.fingerprint))
    except LayoutDiffersError as error:
        print(error, file=sys.stderr, flush=True)
        return LAYOUT_DIFFERS
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a search makes thousands of objects and no cycles
    args.socket.unlink(missing_ok=True)  # what a killed run left
    try:
        uvloop.run(serve(engine, args.socket))
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
