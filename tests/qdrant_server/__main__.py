"""A loopback server that speaks Qdrant's own gRPC in front of the Edge engine, for tests where no Qdrant can run.

`python -m tests.qdrant_server --listen HOST:PORT --directory D [--api-key K] [--certificate C --private-key P]`

It prints a line with the port once it takes calls. What it acknowledged outlives a kill. It is no Qdrant: one shard
per collection, flat search, no replication.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path
from typing import Any

import grpc
from qdrant_client import grpc as q

from tests.qdrant_server.collections import Collections
from tests.qdrant_server.services import CollectionCalls, PointCalls, Root

VERSION = "1.19.0"


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc.aio ships no types
    """Refuses calls without the key."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if dict(details.invocation_metadata or ()).get("api-key") == self._key:
            return await continuation(details)

        async def refuse(request: Any, context: Any) -> Any:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")

        return grpc.unary_unary_rpc_method_handler(refuse)


async def serve(args: argparse.Namespace) -> None:
    collections = Collections(args.directory)
    unlimited = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(interceptors=[Gate(args.api_key)] if args.api_key else [], options=unlimited)
    q.add_QdrantServicer_to_server(Root(args.version), server)
    q.add_CollectionsServicer_to_server(CollectionCalls(collections), server)
    q.add_PointsServicer_to_server(PointCalls(collections), server)
    if args.certificate:
        pair = (args.private_key.read_bytes(), args.certificate.read_bytes())
        port = server.add_secure_port(args.listen, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(args.listen)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await server.start()
    print(f"listening {port}", flush=True)
    await stop.wait()
    await server.stop(1.0)
    collections.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.qdrant_server")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--api-key", default="")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--private-key", type=Path)
    parser.add_argument("--version", default=VERSION, help="what it says it is")
    asyncio.run(serve(parser.parse_args()))


main()
