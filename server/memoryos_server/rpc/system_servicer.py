"""SystemService: is it alive, is it ready, what does it count."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from memoryos.v1 import system_service_pb2 as pb
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.rpc.state import Mode, Serving

_Context = grpc.aio.ServicerContext[Any, Any]

_MODES = {
    Mode.READY: pb.SERVING_MODE_READY,
    Mode.DEGRADED_READY: pb.SERVING_MODE_DEGRADED_READY,
    Mode.NOT_READY: pb.SERVING_MODE_NOT_READY,
}


class SystemServicer:
    """Answers probes out of what health has found out; no probe waits for a store."""

    def __init__(self, *, serving: Serving, metrics: Metrics, auth_enabled: bool) -> None:
        """Keeps what it tells."""
        self._serving = serving
        self._metrics = metrics
        self._auth_enabled = auth_enabled
        self._version = version("memoryos")

    async def CheckHealth(self, _request: pb.CheckHealthRequest, _context: _Context) -> pb.CheckHealthResponse:
        """Says that the process is there."""
        return pb.CheckHealthResponse(status="ok")

    async def GetHealthStatus(
        self, _request: pb.GetHealthStatusRequest, _context: _Context
    ) -> pb.GetHealthStatusResponse:
        """Says which stores are up."""
        state = self._serving.state
        return pb.GetHealthStatusResponse(
            mode=_MODES[state.mode], redis=_backend(state.redis), qdrant=_backend(state.qdrant)
        )

    async def CheckLiveness(self, _request: pb.CheckLivenessRequest, _context: _Context) -> pb.CheckLivenessResponse:
        """Says that the process is there, and when it said so."""
        return pb.CheckLivenessResponse(status="ok", timestamp=_now())

    async def CheckReadiness(self, _request: pb.CheckReadinessRequest, _context: _Context) -> pb.CheckReadinessResponse:
        """Says whether requests should be sent here."""
        return pb.CheckReadinessResponse(status="ready" if self._serving.state.ready else "not_ready", timestamp=_now())

    async def GetMetrics(self, _request: pb.GetMetricsRequest, _context: _Context) -> pb.GetMetricsResponse:
        """Gives the server's metrics."""
        return pb.GetMetricsResponse(text=await self._metrics.text())

    async def GetServerInfo(self, _request: pb.GetServerInfoRequest, _context: _Context) -> pb.GetServerInfoResponse:
        """Says how the server was started."""
        return pb.GetServerInfoResponse(version=self._version, auth_enabled=self._auth_enabled)


def _backend(up: bool) -> pb.BackendState.ValueType:
    return pb.BACKEND_STATE_UP if up else pb.BACKEND_STATE_DOWN


def _now() -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC))
    return stamp
