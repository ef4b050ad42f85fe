"""The same RPC with the trust plane left out: the server's own frame, without keys, audit and defense."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop

from memoryos import schema
from memoryos.settings import ServerSettings
from memoryos.v1 import defense_service_pb2 as pb
from memoryos_server.rpc import logging as rpc_logging
from memoryos_server.rpc.grpc_health import HealthBoard
from memoryos_server.rpc.interceptors import Admission, Degraded, Faults, Telemetry, deadline
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.rpc.required import Required
from memoryos_server.rpc.server import RpcServer
from memoryos_server.rpc.state import Phase, ServingState
from memoryos_server.rpc.wrap import Before, compose


class _Serving:
    """Always up."""

    state = ServingState(Phase.SERVING, redis=True, qdrant=True)

    async def drain(self) -> None:
        """Nothing waits."""


class _Servicer:
    """One method that answers at once."""

    async def ListWhitelist(self, _request: pb.ListWhitelistRequest, _context: Any) -> pb.ListWhitelistResponse:
        """Answers."""
        return pb.ListWhitelistResponse()


async def serve(address: str) -> None:
    """Serves until it is killed."""
    methods = [method for method in schema.load() if method.name == "ListWhitelist"]
    board = HealthBoard(["memoryos.v1.SystemService"])
    board.set("memoryos.v1.SystemService", True)  # a bridge asks nobody who does not say that it serves
    metrics, logger, serving = Metrics(), rpc_logging.configure("info", "json"), _Serving()
    around = compose(
        Telemetry(metrics, logger),
        Faults(logger),
        Admission(1000, metrics),
        deadline,
        Before(Degraded(serving)),
        Before(Required(methods)),
    )
    server = RpcServer(
        ServerSettings(listen=address),
        auth_enabled=False,
        insecure=False,
        methods=methods,
        servicers={"memoryos.v1.DefenseService": _Servicer()},
        around=around,
        serving=serving,
        board=board,
        logger=logger,
    )
    async with server:
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
