"""The gRPC server: listens, serves what the protos say, and stops without cutting anybody off."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from memoryos import certificates
from memoryos.addresses import is_loopback, split_address
from memoryos.certificates import Certificates
from memoryos.schema import Method, SchemaError
from memoryos.settings import ServerSettings, SettingsError, TlsSettings
from memoryos_server.rpc import grpc_health
from memoryos_server.rpc.grpc_health import HealthBoard
from memoryos_server.rpc.state import Serving
from memoryos_server.rpc.wrap import Around, Door, Live, wrap

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_FINALLY_SECONDS = 5.0


class RpcServer:
    """A gRPC server of a set of services. `async with` starts and stops it.

    Attributes:
        address: Where it listens, with the real port; "" before the start. Clients connect to it as it stands.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        auth_enabled: bool,
        insecure: bool,
        methods: Sequence[Method],
        servicers: Mapping[str, object],
        around: Around,
        door: Door | None = None,
        unknown: grpc.GenericRpcHandler | None = None,
        serving: Serving,
        board: HealthBoard,
        logger: FilteringBoundLogger,
    ) -> None:
        """Keeps what is served.

        Args:
            settings: Where to listen, and the limits.
            auth_enabled: Whether calls need a key.
            insecure: Whether listening beyond loopback without auth is allowed.
            methods: The RPCs, from `memoryos.schema.load`.
            servicers: For each service's full name, the object whose coroutines have the RPCs' names.
            around: The interceptors, from `interceptors.standard`.
            door: Looks at calls before these.
            unknown: Answers calls of methods that do not exist; None: gRPC does.
            serving: Told when the server drains.
            board: The health service.
            logger: Tells of start and stop.

        Raises:
            SchemaError: An RPC has no servicer or its servicer no method for it, or a servicer has no RPC.
        """
        self._settings = settings
        self._auth_enabled = auth_enabled
        self._insecure = insecure
        self._serving = serving
        self._board = board
        self._logger = logger
        self._live = Live()
        self._server: grpc.aio.Server | None = None
        self._services = tuple(dict.fromkeys(method.service for method in methods))
        self._handlers = _handlers(methods, servicers, around, self._live, door, settings.reader_idle_seconds)
        self._unknown = unknown
        self.address = ""

    async def __aenter__(self) -> RpcServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts to take calls.

        Raises:
            SettingsError: `server.listen` is malformed, taken, or open to others without auth, or a file of `server.tls`
                cannot be used.
        """
        listen = self._settings.listen
        host, port = ("unix:", None) if listen.startswith("unix:") else split_address(listen, "server.listen")
        if not (self._auth_enabled or self._insecure or is_loopback(host)):
            raise SettingsError(
                f"server.listen: {listen} can be reached from other machines and auth is off; "
                "set auth.enabled, listen on 127.0.0.1, or set insecure if everybody may read and write everything"
            )
        server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers((self._handlers,))
        server.add_generic_rpc_handlers((self._board.handler(),))
        if self._settings.reflection:
            _add_reflection(server, (*self._services, grpc_health.SERVICE))
        if self._unknown is not None:
            server.add_generic_rpc_handlers((self._unknown,))
        secured = certificates.serving(self._settings.tls, "server.tls", self._told)
        if secured is None and not is_loopback(host):
            self._logger.warning(
                "listening_in_the_clear", address=listen, hint="set server.tls, or keep to a proxy's network"
            )
        try:
            bound = server.add_secure_port(listen, _showing(secured)) if secured else server.add_insecure_port(listen)
        except RuntimeError:
            raise SettingsError(f"server.listen: cannot listen on {listen}; is the address taken?") from None
        await server.start()
        self._server = server
        self.address = listen if port is None else f"{f'[{host}]' if ':' in host else host}:{bound}"
        self._logger.info(
            "rpc_listening", address=self.address, services=list(self._services), tls=_said(self._settings.tls)
        )

    def _told(self, what: str, taken: bool) -> None:
        (self._logger.info if taken else self._logger.warning)("certificate", note=what)

    async def stop(self) -> None:
        """Stops taking calls and lets those under way end. When it returns, no handler runs any more.

        Health says NOT_SERVING first and `drain_seconds` pass, for load balancers to notice; then calls have
        `grace_seconds`; those left are cancelled, and their `finally` blocks are waited for, so that stores may be
        closed.
        """
        server, self._server = self._server, None
        if server is None:
            return
        await self._serving.drain()
        if self._settings.drain_seconds:
            await asyncio.sleep(self._settings.drain_seconds)
        self._board.close()
        await server.stop(self._settings.grace_seconds)
        if not await self._live.wait_idle(_FINALLY_SECONDS):
            self._logger.error("rpc_handlers_left", count=self._live.count)
        self._logger.info("rpc_stopped")

    def _options(self) -> list[tuple[str, Any]]:
        return [
            ("grpc.max_receive_message_length", self._settings.max_message_bytes),
            ("grpc.max_send_message_length", self._settings.max_message_bytes),
            # Two servers on one port would each get half of the calls without anybody noticing.
            ("grpc.so_reuseport", 0),
            # Clients may keep idle connections alive, and a client that is gone is noticed within a minute and a half.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
            # After a busy moment several pings are read at once: whoever sent them in time must not lose his connection.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Clients come again now and then, so that a server that was added gets its share; calls under way end first.
            ("grpc.max_connection_age_ms", 300_000),
            ("grpc.max_connection_age_grace_ms", 3_600_000),
        ]


def _showing(certificate: Certificates) -> grpc.ServerCredentials:
    """Credentials that show the newest certificate at each handshake."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        material = certificate.material
        return grpc.ssl_server_certificate_configuration([(material.key, material.chain)], material.authorities)

    def newer() -> grpc.ServerCertificateConfiguration | None:
        return configuration() if certificate.renew() else None

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        newer,  # type: ignore[arg-type]  # None, for nothing new, is missing in the stubs
        require_client_authentication=certificate.material.authorities is not None,
    )


def _said(tls: TlsSettings) -> str:
    if not tls.cert_file:
        return "off"
    return "mutual" if tls.client_ca_file else "on"


def _handlers(
    methods: Sequence[Method],
    servicers: Mapping[str, object],
    around: Around,
    live: Live,
    door: Door | None,
    reader_idle: float,
) -> _Handlers:
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in methods:
        servicer = servicers.get(method.service)
        handler = getattr(servicer, method.name, None)
        if handler is None:
            missing = "no servicer" if servicer is None else f"no method in {type(servicer).__name__}"
            raise SchemaError(f"{method.path} has {missing}")
        handlers[method.path] = wrap(method, handler, around, live, door, reader_idle)
    for name in servicers.keys() - {method.service for method in methods}:
        raise SchemaError(f"{name} has a servicer but no RPC is served of it")
    return _Handlers(handlers)


class _Handlers(grpc.GenericRpcHandler):
    """The methods of all services. gRPC asks one handler after the other for each call, so one is for all."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(details.method)


def _add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    names = (*services, reflection.SERVICE_NAME, _REFLECTION_V1)
    reflection.enable_server_reflection(names, server)
    # Newer clients ask for v1 first. Its messages are those of v1alpha under another name: one servicer answers both.
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": handler}),)
    )
