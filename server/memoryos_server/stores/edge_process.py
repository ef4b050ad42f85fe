"""The process that holds the vector engine.

The engine keeps Python's interpreter lock in every call, a vacuum even for seconds, so it lives apart from the
server. It runs without a log of its own: writes are durable once `flush` returned, and the ledger replays what a
crash took. This process knows no user, no key and no plain text; it trusts whoever can open its socket, which lies
in a directory of mode 0700. It flushes and ends on SIGTERM and when its standard input ends, which is when its
parent is gone.

`python -m memoryos_server.stores.edge_process --directory D --socket S [--vector NAME=DIMENSION]...`
"""

from __future__ import annotations

import argparse
import array
import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import qdrant_edge as qe

from memoryos_server.stores.frames import LEXICAL, FrameError, Splitter, pack

LAYOUT_DIFFERS = 3
"""The exit status when the directory holds other vectors than asked for."""

# In kilobytes of a segment. So high that no graph index is ever built: flat search is exact, fast enough at embedded
# sizes, and building a graph would stop the process for half a minute.
_NEVER = 10**9


class LayoutDiffersError(Exception):
    """The directory holds other vectors than asked for; the message tells both."""


class InvalidRequestError(Exception):
    """A request is wrong; the message says how and holds no content."""


def _config(dense: Mapping[str, int]) -> qe.EdgeConfig:
    return qe.EdgeConfig(
        vectors={name: qe.EdgeVectorParams(size=size, distance=qe.Distance.Cosine) for name, size in dense.items()},
        sparse_vectors={LEXICAL: qe.EdgeSparseVectorParams(modifier=qe.Modifier.Idf)},
        optimizers=qe.EdgeOptimizersConfig(indexing_threshold=_NEVER),
        wal_enabled=False,
    )


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Engine:
    """One shard in one directory, and the operations that requests name."""

    def __init__(self, shard: qe.EdgeShard, dense: Mapping[str, int]) -> None:
        self._shard = shard
        self._dense = dict(dense)
        # Tells whether a write was taken by this process or by one before it, which may have lost it.
        self._incarnation = secrets.randbits(62)
        self.operations: Mapping[str, Callable[..., Any]] = {
            "ping": self.ping,
            "insert": self.insert,
            "search": self.search,
            "get": self.get,
            "owner": self.owner,
            "flush": self.flush,
            "count": self.count,
            "delete_subject": self.delete_subject,
        }

    @classmethod
    def open(cls, directory: Path, dense: Mapping[str, int]) -> Engine:
        """The engine of a directory, made if it is empty.

        Raises:
            LayoutDiffersError: It holds vectors of other names or dimensions.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path, layout = directory / "shard", {"version": 1, "dense": dict(sorted(dense.items())), "sparse": [LEXICAL]}
        if path.exists():
            found = json.loads((path / "layout.json").read_text("utf-8"))
            if found != layout:
                raise LayoutDiffersError(
                    f"the index in {directory.resolve()} holds the vectors {found.get('dense')}"
                    f" (layout {found.get('version')}), but {layout['dense']} (layout {layout['version']}) are"
                    " configured: set the embedding model back, or use another data directory"
                )
            # A killed vacuum leaves its half-made segments behind; they are copies.
            shutil.rmtree(path / "temp_segments", ignore_errors=True)
            return cls(qe.EdgeShard.load(str(path), _config(dense)), dense)
        # Made aside and renamed, so that a crash midway leaves no half-made shard under the name.
        fresh = directory / "shard.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        shard = qe.EdgeShard.create(str(fresh), _config(dense))
        shard.update(qe.UpdateOperation.create_field_index("s", qe.KeywordIndexParams(is_tenant=True)))
        shard.update(qe.UpdateOperation.create_field_index("ts", qe.FloatIndexParams()))
        shard.flush()
        shard.close()
        (fresh / "layout.json").write_text(json.dumps(layout), "utf-8")
        _sync(fresh / "layout.json")
        _sync(fresh)
        fresh.rename(path)
        _sync(directory)
        return cls(qe.EdgeShard.load(str(path), _config(dense)), dense)

    def close(self) -> None:
        """Flushes and lets go of the files."""
        self._shard.flush()
        self._shard.close()

    def ping(self) -> dict[str, Any]:
        """Which process this is."""
        return {"pid": os.getpid(), "incarnation": self._incarnation}

    def insert(self, points: Sequence[Mapping[str, Any]]) -> int:
        """Adds points that are not there; gives the incarnation. Of equal ids in a request the first counts."""
        made: dict[str, qe.Point] = {}
        for point in points:
            vector: dict[str, Any] = {name: self._vector(name, raw) for name, raw in point["dense"].items()}
            indices, values = point["sparse"]
            if indices:
                vector[LEXICAL] = qe.SparseVector(indices=indices, values=values)
            made.setdefault(str(UUID(point["id"])), qe.Point(point["id"], vector, point["payload"]))
        if made:
            self._shard.update(
                qe.UpdateOperation.upsert_points(list(made.values()), update_mode=qe.UpdateMode.InsertOnly)
            )
        return self._incarnation

    def search(
        self,
        subject: str,
        sparse: tuple[list[int], list[float]],
        dense: Mapping[str, bytes],
        limit: int,
        until: float | None,
    ) -> dict[str, Any]:
        """The best `limit` of each leg among a subject's points: `legs` name -> [id, score]..., `payloads` id -> text.

        IDF is counted over the subject's points, whatever `until` says.
        """
        mine = qe.FieldCondition("s", match=qe.MatchValue(subject))
        corpus = qe.Filter(must=[mine])
        chosen = corpus
        if until is not None:
            chosen = qe.Filter(must=[mine, qe.FieldCondition("ts", range=qe.RangeFloat(lte=until))])
        names: list[str] = []
        requests: list[qe.QueryRequest] = []
        if sparse[0]:
            names.append(LEXICAL)
            requests.append(
                qe.QueryRequest(
                    limit=limit,
                    query=qe.Query.Nearest(qe.SparseVector(indices=sparse[0], values=sparse[1]), using=LEXICAL),
                    filter=chosen,
                    params=qe.SearchParams(idf=qe.IdfParams(corpus=corpus)),
                    with_payload=["t"],
                )
            )
        for name, raw in dense.items():
            names.append(name)
            query = qe.Query.Nearest(self._vector(name, raw), using=name)
            requests.append(qe.QueryRequest(limit=limit, query=query, filter=chosen, with_payload=["t"]))
        legs: dict[str, list[tuple[str, float]]] = {}
        payloads: dict[str, str] = {}
        answers = self._shard.query_batch(qe.QueryBatchRequest(requests)) if requests else []
        for name, hits in zip(names, answers, strict=True):
            leg = legs[name] = []
            for hit in hits:
                found = str(hit.id)
                leg.append((found, hit.score))
                payloads[found] = (hit.payload or {})["t"]
        return {"legs": legs, "payloads": payloads}

    def get(self, subject: str, ids: Sequence[str]) -> dict[str, str]:
        """Id -> text of those points that are the subject's."""
        records = self._shard.retrieve(list(ids), with_payload=["s", "t"], with_vector=False)
        return {str(r.id): r.payload["t"] for r in records if r.payload and r.payload.get("s") == subject}

    def owner(self, memory_id: str) -> str | None:
        """The subject a point belongs to, or None."""
        records = self._shard.retrieve([memory_id], with_payload=["s"], with_vector=False)
        return str(records[0].payload["s"]) if records and records[0].payload else None

    def flush(self) -> int:
        """Makes all writes durable; gives the incarnation whose writes they are."""
        self._shard.flush()
        return self._incarnation

    def count(self, subject: str | None) -> int:
        """The number of points, of a subject or of all."""
        chosen = None if subject is None else qe.Filter(must=[qe.FieldCondition("s", match=qe.MatchValue(subject))])
        return self._shard.count(qe.CountRequest(exact=True, filter=chosen))

    def delete_subject(self, subject: str) -> None:
        """Removes a subject's points from every answer; the bytes stay in the files until a vacuum."""
        chosen = qe.Filter(must=[qe.FieldCondition("s", match=qe.MatchValue(subject))])
        self._shard.update(qe.UpdateOperation.delete_points_by_filter(chosen))

    def _vector(self, name: str, raw: bytes) -> list[float]:
        if len(raw) != self._dense.get(name, -1) * 4:
            raise InvalidRequestError(f"no vector {name!r} of {len(raw) // 4} dimensions is configured")
        vector = array.array("f")
        vector.frombytes(raw)
        return vector.tolist()


class Connection(asyncio.Protocol):
    """One client. Requests are answered in order; what is torn or malformed costs only its own connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._splitter = Splitter()
        self._transport: asyncio.Transport | None = None

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
            operation = self._engine.operations.get(name)
            if operation is None:
                raise InvalidRequestError(f"no operation {name!r}")
            return pack([number, None, operation(*arguments)])
        except (InvalidRequestError, TypeError, KeyError, ValueError) as error:
            return pack([number, ["invalid", f"{name}: {type(error).__name__}: {error}"], None])
        except Exception as error:  # the engine raises bare Exception; one bad request must not end the process
            return pack([number, ["failed", f"{name}: {error}"], None])


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
    args = parser.parse_args(argv)
    dense = {name: int(size) for name, _, size in (text.rpartition("=") for text in args.vector)}
    # Ctrl-C reaches every process of a terminal; who stops this one is its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        engine = Engine.open(args.directory, dense)
    except LayoutDiffersError as error:
        print(error, file=sys.stderr, flush=True)
        return LAYOUT_DIFFERS
    args.socket.unlink(missing_ok=True)  # what a killed run left
    try:
        asyncio.run(serve(engine, args.socket))
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
