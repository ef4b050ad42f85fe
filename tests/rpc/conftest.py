from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from scratch.v1 import scratch_service_pb2_grpc

from tests.scratch.serve import Scratch, run_scratch


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
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
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
