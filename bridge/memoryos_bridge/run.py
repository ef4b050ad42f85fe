"""The bridge as a process: one HTTP server that stops gracefully."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket

import grpc
import uvicorn
from fastapi import FastAPI

from memoryos import certificates
from memoryos.addresses import is_loopback, split_address
from memoryos.settings import BridgeSettings, Settings, SettingsError
from memoryos.tls import towards_server
from memoryos.v1 import system_service_pb2 as system
from memoryos_bridge import logs
from memoryos_bridge.app import create_app, target
from memoryos_bridge.gate import OPEN_BEYOND_LOOPBACK
from memoryos_bridge.heads import heads
from memoryos_bridge.link import SERVER_TLS
from memoryos_bridge.listening import cut_off_idle_readers, keep_newcomers_out

_LAST_WORDS_SECONDS = 2

_LAST_HANDSHAKES_SECONDS = 0.1
"""How long those who are already connecting have to be let in, once newcomers are kept out."""

_FIRST_WORDS_SECONDS = 0.3
"""How long a client that was just let in has to send its request once nobody else is."""


class _Server(uvicorn.Server):
    """Ends what is still under way when the grace is over as an error that clients understand, not as a cut connection."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: BridgeSettings) -> None:
        super().__init__(config)
        self._app = app
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to take connections."""
        await super().startup(sockets)
        for server in getattr(self, "servers", ()):  # none if it could not start
            for listener in server.sockets:
                cut_off_idle_readers(listener.fileno(), self._settings.reader_idle_seconds)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops taking connections and waits for those that are there."""
        # At a stop the HTTP server drops connections without a request, and the kernel those that nobody has let in. A client
        # that has connected is not to be one of them.
        for server in self.servers:
            for listener in server.sockets:
                keep_newcomers_out(listener.fileno())
        await asyncio.sleep(_LAST_HANDSHAKES_SECONDS)
        for server in self.servers:
            server.close()
        await asyncio.sleep(_FIRST_WORDS_SECONDS)
        ending = asyncio.create_task(self._end_calls())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _end_calls(self) -> None:
        await asyncio.sleep(self._settings.grace_seconds)
        await self._app.state.remote.close()


def refuse_open(settings: Settings) -> None:
    """Refuses to be reachable from other machines while the server needs no key.

    A server that cannot be asked yet is asked again at the first requests, which are refused until it has answered.

    Raises:
        SettingsError: The server has auth off.
    """
    host, _ = split_address(settings.bridge.listen, "bridge.listen")
    if settings.insecure or is_loopback(host):
        return
    tls = towards_server(settings)
    with (
        grpc.insecure_channel(target(settings))
        if tls is None
        else grpc.secure_channel(target(settings), tls.credentials(SERVER_TLS), tls.options())
    ) as channel:
        ask = channel.unary_unary(
            "/memoryos.v1.SystemService/GetServerInfo",
            request_serializer=system.GetServerInfoRequest.SerializeToString,
            response_deserializer=system.GetServerInfoResponse.FromString,
        )
        try:
            info = ask(system.GetServerInfoRequest(), timeout=2.0)
        except grpc.RpcError:
            return
    if not info.auth_enabled:
        raise SettingsError(OPEN_BEYOND_LOOPBACK.format(listen=settings.bridge.listen))


def serve(settings: Settings) -> int:
    """Runs the bridge until SIGTERM or SIGINT; the exit code.

    Raises:
        SettingsError: A setting is malformed, or the bridge would be open to other machines.
    """
    host, port = split_address(settings.bridge.listen, "bridge.listen")
    log = logs.make(settings.log)
    certificate = certificates.serving(
        settings.bridge.tls,
        "bridge.tls",
        lambda what, taken: (log.info if taken else log.warning)("certificate", note=what),
    )
    refuse_open(settings)
    if certificate is None and not is_loopback(host):
        log.warning(
            "listening_in_the_clear",
            address=settings.bridge.listen,
            hint="set bridge.tls, or keep to a proxy's network",
        )
    if (tls := towards_server(settings)) is not None:
        tls.credentials(SERVER_TLS)  # what is wrong with its files is said before anything starts
    app = create_app(settings, log=log)
    root = logging.getLogger()
    root.addHandler(logs.Forward(log))
    root.setLevel(logging.INFO)
    server = _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            loop="uvloop",
            http=heads(settings.bridge.head_timeout_seconds),
            ws="none",
            lifespan="on",
            # The bridge reads forwarded addresses itself, and logs requests by route, never by path.
            proxy_headers=False,
            access_log=False,
            log_config=None,
            server_header=False,
            ssl_context_factory=None if certificate is None else lambda *_: certificate.listening(),
            # What was told to end after the grace has this long to say so.
            timeout_graceful_shutdown=math.ceil(settings.bridge.grace_seconds) + _LAST_WORDS_SECONDS,
        ),
        app,
        settings.bridge,
    )
    log.info("bridge_starting", listen=settings.bridge.listen, server=target(settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        # The HTTP server hands the signal on once it has stopped; by then it has done its work.
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    try:
        server.run()
    except SystemExit as stop:
        # The HTTP server has logged why it could not start.
        return stop.code if isinstance(stop.code, int) else 1
    return 0 if server.started or server.should_exit else 1
