"""The standard health service, `grpc.health.v1`.

The reference servicer keeps its watchers' streams open through a stop, which would make every stop wait out its whole
grace, and holds a lock while it writes to a slow one. Here `close` ends them, and nobody waits for a reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

SERVICE = "grpc.health.v1.Health"
"""The service's full name."""

_Status = health_pb2.HealthCheckResponse
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthBoard:
    """Which services take calls, for `Check` and `Watch`."""

    def __init__(self, services: Iterable[str]) -> None:
        """Starts with every service not serving.

        Args:
            services: Full names; the overall "" is added.
        """
        self._serving = dict.fromkeys(["", *services], False)
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def services(self) -> tuple[str, ...]:
        """Every name that is known, the overall "" first."""
        return tuple(self._serving)

    def set(self, service: str, serving: bool) -> None:
        """Says whether a service takes calls; watchers hear of a change at once."""
        if self._serving.get(service) is not serving:
            self._serving[service] = serving
            self._wake()

    def close(self) -> None:
        """Ends every watch, present and future, after its last state."""
        self._closed = True
        self._wake()

    def handler(self) -> grpc.GenericRpcHandler:
        """The service as gRPC takes it."""
        parse, write = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check, parse, write),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch, parse, write),
            },
        )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        serving = self._serving.get(request.service)
        if serving is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service")
        return _Status(status=_SERVING if serving else _NOT_SERVING)

    async def _watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        last = None
        while True:
            changed = self._changed
            serving = self._serving.get(request.service)
            status = _UNKNOWN if serving is None else _SERVING if serving else _NOT_SERVING
            if status != last:
                await context.write(_Status(status=status))
                last = status
            elif self._closed:
                return
            else:
                await changed.wait()
