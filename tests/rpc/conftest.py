from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from scratch.v1 import scratch_service_pb2_grpc

from memoryos_server.domain.core.faults import Exists
from memoryos_server.domain.ports import ApiKey
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from tests.scratch.serve import Scratch, run_scratch
from tests.stores.redis_fixtures import EXPECTED, Valkey


@dataclass
class Failure:
    """What a client sees of a failed call."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    metadata: dict[str, str]
    violations: list[tuple[str, str]]
    retry_after: float | None
    headers: dict[str, str]


async def failure(call: Any) -> Failure:
    """How a unary or streaming call failed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (_drain(call) if hasattr(call, "__aiter__") else call)
    error = caught.value
    status = rpc_status.from_call(error)
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    delay = None
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            delay = retry.retry_delay.ToTimedelta().total_seconds()
    return Failure(
        error.code(),
        error.details() or "",
        info.reason,
        info.domain,
        dict(info.metadata),
        [(v.field, v.description) for v in bad.field_violations],
        delay,
        dict(error.initial_metadata() or ()),
    )


async def _drain(call: Any) -> None:
    async for _ in call:
        pass


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Any]:
    """A stub of the scratch service."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield scratch_service_pb2_grpc.ScratchServiceStub(channel)


def lines(running: Scratch, event: str = "rpc") -> list[dict[str, Any]]:
    """The log's lines of an event."""
    parsed = [json.loads(line) for line in running.log.getvalue().splitlines()]
    return [line for line in parsed if line["event"] == event]


@pytest.fixture
async def running() -> AsyncIterator[Scratch]:
    async with run_scratch() as scratch:
        yield scratch


@pytest.fixture
async def stub(running: Scratch) -> AsyncIterator[Any]:
    async with client(running.address) as made:
        yield made


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def store(valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisStore]:
    """The real Redis side, with the keys of `KEYS`, and an empty audit log."""
    if valkey.process is None:
        valkey.start()
    keys = MasterKeys("", valkey.directory.parent / "keys", valkey.directory)
    async with RedisStore.connect(valkey.url, keys, EXPECTED) as opened:
        for key, record in KEYS.items():
            with suppress(Exists):
                await opened.keys.create(key, record)
        yield opened
    if valkey.process is None:
        valkey.start()


ADMIN = "the-admin-key-of-settings"
NOW = datetime.now(UTC)


def record(name: str, *permissions: str, tenant: str = "acme", ends: timedelta | None = None) -> ApiKey:
    return ApiKey(f"key_{name}", f"user-{name}", tenant, frozenset(permissions), "", NOW, NOW + ends if ends else None)


KEYS = {
    "reader-0123456789": record("reader", "memory.read"),
    "writer-0123456789": record("writer", "memory.write"),
    "memory-0123456789": record("memory", "memory"),
    "chatty-0123456789": record("chatty", "chat"),
    "wikier-0123456789": record("wikier", "wiki"),
    "actas-0123456789": record("actas", "memory", "act_as"),
    "boss-0123456789": record("boss", "admin"),
    "anywhere-0123456789": record("anywhere", "admin", tenant="*"),
    "expired-0123456789": record("expired", "admin", ends=timedelta(seconds=-1)),
    "fresh-0123456789": record("fresh", "memory", ends=timedelta(hours=1)),
}


def bearer(name: str, **more: str) -> list[tuple[str, str]]:
    """The metadata of a call with a key of `KEYS`, or with `ADMIN`."""
    key = ADMIN if name == "ADMIN" else f"{name}-0123456789"
    return [("authorization", f"Bearer {key}"), *((k.replace("_", "-"), v) for k, v in more.items())]
