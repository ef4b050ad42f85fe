"""Requests of routes that do not exist: the server is told of whom, since it is the server that bans.

A path stays here; the server gets a hash of it, by which it counts different ones.
"""

from __future__ import annotations

import hashlib

import grpc

from memoryos.schema import Method
from memoryos.v1 import defense_service_pb2 as defense
from memoryos_bridge.errors import from_rpc, unreachable
from memoryos_bridge.exchange import Exchange
from memoryos_bridge.headers import Forwarding
from memoryos_bridge.remote import Remote

PATH = "/memoryos.v1.DefenseService/ReportUnknownRoute"


class UnknownRoutes:
    """Tells the server."""

    def __init__(self, method: Method, remote: Remote, forwarding: Forwarding) -> None:
        """Keeps the RPC, the server, and what it is told of a request."""
        self._method = method
        self._remote = remote
        self._forwarding = forwarding

    async def report(self, exchange: Exchange, path: str) -> None:
        """Tells of a request.

        Raises:
            BridgeError: The client is banned (403), or makes too many requests without a valid key (429).
            ClientGone: The client left.
        """
        info = await self._remote.info()
        # Without a secret the server would take the bridge itself for whoever asked.
        if info is None or not info.auth_enabled or not self._forwarding.tells_addresses:
            return
        digest = hashlib.blake2b(path.encode("latin-1"), digest_size=16).digest()
        request = defense.ReportUnknownRouteRequest(digest=digest)
        await exchange.body(self._method.max_body_bytes)  # what the client sends is not read as its next request
        try:
            await self._remote.call(exchange, self._method, request, self._forwarding.metadata(exchange))
        except grpc.aio.AioRpcError as error:
            if unreachable(error):
                return
            made = from_rpc(error)
            if made.status in (403, 429):
                raise made from None
