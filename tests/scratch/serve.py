"""Starts the real server in-process, with the scratch service and the system service."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from scratch.v1 import scratch_service_pb2

from memoryos import schema
from memoryos.settings import ServerSettings
from memoryos.v1 import system_service_pb2
from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import ApiKey, ApiKeys, AuditLog
from memoryos_server.health import Health
from memoryos_server.rpc import logging as rpc_logging
from memoryos_server.rpc.audit import Audit, AuditWriter
from memoryos_server.rpc.auth import Auth
from memoryos_server.rpc.grpc_health import HealthBoard
from memoryos_server.rpc.interceptors import standard
from memoryos_server.rpc.metrics import Metrics, MetricsListener
from memoryos_server.rpc.server import RpcServer
from memoryos_server.rpc.system_servicer import SystemServicer
from tests.scratch.servicer import ScratchServicer

SCRATCH = "scratch.v1.ScratchService"
SYSTEM = "memoryos.v1.SystemService"


class MemoryKeys:
    """The port ApiKeys over a dict."""

    def __init__(self, keys: dict[str, ApiKey] | None = None) -> None:
        self.keys = dict(keys or {})
        self.down = False
        self.lookups = 0

    async def find(self, key: str) -> ApiKey | None:
        self.lookups += 1
        if self.down:
            raise BackendDown("The store does not answer")
        return self.keys.get(key)

    def held(self, key: str) -> ApiKey | None:
        return None if self.down else self.keys.get(key)

    def seen(self, key: str) -> ApiKey | None:
        return self.keys.get(key)

    async def create(self, key: str, record: ApiKey) -> None:
        self.keys[key] = record

    async def list(self) -> list[ApiKey]:
        return list(self.keys.values())

    async def revoke(self, key_or_id: str) -> ApiKey | None:
        return self.keys.pop(key_or_id, None)


class MemoryAudit:
    """The port AuditLog over a list."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.appends = 0
        self.down = False

    async def append(self, events: Sequence[AuditEvent]) -> None:
        if self.down:
            raise BackendDown("The store does not answer")
        self.appends += 1
        self.events += events

    async def tail(self, tenant_id: str | None, limit: int) -> AsyncIterator[AuditEvent]:
        for event in [e for e in self.events if tenant_id in (None, e.tenant_id)][-limit:]:
            yield event


class Backend:
    """A store that can be taken down: what a probe asks."""

    def __init__(self, up: bool = True) -> None:
        self.up = up

    async def probe(self) -> None:
        if not self.up:
            raise BackendDown("The store does not answer")


@dataclass
class Scratch:
    """A running server and what it was made of."""

    address: str
    metrics_address: str
    server: RpcServer
    servicer: ScratchServicer
    health: Health
    board: HealthBoard
    metrics: Metrics
    redis: Backend
    vectors: Backend
    audit_log: Any
    log: io.BytesIO = field(default_factory=io.BytesIO)


@asynccontextmanager
async def run_scratch(
    *,
    auth_enabled: bool = False,
    admin_key: str = "",
    keys: ApiKeys | None = None,
    bridge_secret: str = "",
    now: Callable[[], datetime] = utc_now,
    insecure: bool = False,
    redis: Backend | None = None,
    vectors: Backend | None = None,
    audit_log: AuditLog | None = None,
    ready_when_noop: bool = False,
    log_level: str = "info",
    **server: Any,
) -> AsyncIterator[Scratch]:
    """Runs a server until left; `server` are fields of ServerSettings. It listens on a free port."""
    settings = ServerSettings(**{"listen": "127.0.0.1:0", "metrics_listen": "", "grace_seconds": 2.0} | server)
    methods = schema.load([scratch_service_pb2.DESCRIPTOR, system_service_pb2.DESCRIPTOR])
    redis, vectors = redis or Backend(), vectors or Backend()
    log = io.BytesIO()
    logger = rpc_logging.configure(log_level, "json", log)
    metrics = Metrics()
    board = HealthBoard(dict.fromkeys(m.service for m in methods))
    events = audit_log or MemoryAudit()
    servicer = ScratchServicer()
    async with (
        Health(
            redis=redis.probe,
            vectors=vectors.probe,
            board=board,
            metrics=metrics,
            logger=logger,
            ready_when_noop=ready_when_noop,
        ) as health,
        AuditWriter(events, metrics=metrics, logger=logger) as writer,
        MetricsListener(metrics, settings.metrics_listen) as listener,
    ):
        around = standard(
            methods,
            metrics=metrics,
            logger=logger,
            serving=health,
            auth=Auth(
                enabled=auth_enabled,
                admin_key=admin_key,
                keys=keys or MemoryKeys(),
                bridge_secret=bridge_secret,
                now=now,
            ),
            audit=Audit(writer),
            max_calls=settings.max_concurrent_calls,
        )
        system = SystemServicer(serving=health, metrics=metrics, auth_enabled=auth_enabled)
        async with RpcServer(
            settings,
            auth_enabled=auth_enabled,
            insecure=insecure,
            methods=methods,
            servicers={SCRATCH: servicer, SYSTEM: system},
            around=around,
            serving=health,
            board=board,
            logger=logger,
        ) as rpc:
            health.serve()
            yield Scratch(
                rpc.address, listener.address, rpc, servicer, health, board, metrics, redis, vectors, events, log
            )


@asynccontextmanager
async def serve_scratch(**settings: Any) -> AsyncIterator[str]:
    """Runs a server until left, and gives its address; see `run_scratch`."""
    async with run_scratch(**settings) as running:
        yield running.address
