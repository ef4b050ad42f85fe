"""The yardstick: a bare gRPC server in a process of its own, with one method that returns the bytes it got."""

from __future__ import annotations

import sys

import grpc
import uvloop

PATH = "/echo.Echo/Echo"


async def _echo(request: bytes, context: object) -> bytes:
    return request


async def serve(address: str) -> None:
    """Serves until it is killed."""
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("echo.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(_echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
