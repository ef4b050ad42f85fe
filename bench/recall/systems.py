"""What is measured: a whole system through its public API, or, for work on recall alone, the engine in this process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from bench.recall.sets import Line
from memoryos.v1 import memory_service_pb2, memory_service_pb2_grpc, types_pb2
from memoryos_server.domain.ports import Embedder


class Memory(Protocol):
    """A memory that can be filled and asked."""

    async def add(self, user: str, lines: Sequence[Line]) -> None:
        """Adds a user's turns in order; they can be found when this returns."""

    async def retrieve(self, user: str, question: str, limit: int, max_tokens: int | None = None) -> list[str]:
        """The event ids found, best first."""


class GrpcMemory:
    """The public API."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        """Keeps the channel."""
        self._stub = memory_service_pb2_grpc.MemoryServiceStub(channel)
        self._metadata = [("authorization", f"Bearer {key}")] if key else []

    async def add(self, user: str, lines: Sequence[Line]) -> None:
        """One AddMemory a turn."""
        for line in lines:
            time = Timestamp()
            time.FromDatetime(line.time)
            request = memory_service_pb2.AddMemoryRequest(
                user_id=user,
                role=types_pb2.ROLE_ASSISTANT if line.role == "assistant" else types_pb2.ROLE_USER,
                content=line.text,
                event_id=line.id,
                session_id=line.session,
                name=line.name,
                timestamp=time,
            )
            await self._stub.AddMemory(request, metadata=self._metadata, timeout=30)

    async def retrieve(self, user: str, question: str, limit: int, max_tokens: int | None = None) -> list[str]:
        """One RetrieveMemory."""
        request = memory_service_pb2.RetrieveMemoryRequest(
            user_id=user, query=question, limit=limit, max_tokens=max_tokens
        )
        answer = await self._stub.RetrieveMemory(request, metadata=self._metadata, timeout=30)
        return [episode.event_id for episode in answer.episodes]


@asynccontextmanager
async def over_grpc(address: str, key: str) -> AsyncIterator[Memory]:
    """A system that runs already."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield GrpcMemory(channel, key)


@asynccontextmanager
async def whole_system() -> AsyncIterator[Memory]:
    """A whole system, started for this and thrown away."""
    from tests.system import System

    with tempfile.TemporaryDirectory(prefix="memoryos-bench-") as home:
        system = System(Path(home))
        try:
            await asyncio.to_thread(system.start, bridge=False)
            async with over_grpc(system.grpc, "") as memory:
                yield memory
        finally:
            await asyncio.to_thread(system.stop)


@dataclass(frozen=True, slots=True)
class _Local:
    """Options of the local embedder."""

    model: str
    provider: str = "local"
    base_url: str = ""
    api_key: str = field(default="", repr=False)
    dimension: int = 0
    max_chars: int = 0
    threads: int = 1


def local_embedder(model: str, models: Path) -> AbstractAsyncContextManager[Embedder]:
    """The local embedder: `minilm`, or `none` for words alone.

    Args:
        model: Which.
        models: Where built models are kept.
    """
    from memoryos_server.tools.embed.opening import open_embedder

    return open_embedder(_Local(model), models, progress=lambda line: print(line, file=sys.stderr))


@asynccontextmanager
async def in_process(models: Path, *, model: str = "minilm") -> AsyncIterator[Memory]:
    """The recall engine in this process, over a real vector process of its own.

    Args:
        models: Where built models are kept.
        model: `minilm`, or `none` for words alone.
    """
    from bench.recall.engine import EngineMemory, Unsealed
    from memoryos.settings import EmbeddingSettings
    from memoryos_server.stores.vectors_edge import EdgeVectors
    from memoryos_server.tools.embed.opening import open_embedder

    async with contextlib.AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memoryos-")))
        embedder = await stack.enter_async_context(
            open_embedder(EmbeddingSettings(model=model), models, progress=lambda line: print(line, file=sys.stderr))
        )
        vectors = [part for name, size in embedder.names.items() for part in ("--vector", f"{name}={size}")]
        socket = home / "s"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "memoryos_server.stores.edge_process", "--directory", str(home / "d")),
            *("--socket", str(socket), *vectors),
            stdin=asyncio.subprocess.PIPE,
        )
        stack.push_async_callback(process.wait)
        stack.callback(lambda: process.stdin.close() if process.stdin else None)
        while not socket.exists():
            if process.returncode is not None:
                raise RuntimeError("the vector process ended")
            await asyncio.sleep(0.02)
        edge = await stack.enter_async_context(EdgeVectors(socket, Unsealed()))
        yield EngineMemory(edge, embedder)
