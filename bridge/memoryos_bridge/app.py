"""The composition of the bridge: which objects there are and how long they live."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

import memoryos
from memoryos import schema
from memoryos.addresses import split_address
from memoryos.schema import Method
from memoryos.settings import Settings, SettingsError
from memoryos.tls import towards_server
from memoryos.tracing import NO_SPANS, Spans
from memoryos_bridge import docs, logs, openai, unknown
from memoryos_bridge.admission import Admission
from memoryos_bridge.boundary import Boundary
from memoryos_bridge.codec import Codec
from memoryos_bridge.gate import Gate
from memoryos_bridge.guards import Guards
from memoryos_bridge.headers import Forwarding
from memoryos_bridge.metrics import Metrics, MetricsRoute
from memoryos_bridge.remote import Remote
from memoryos_bridge.routes import Entry, Handler, RouteTable, transcoded

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_METRICS = "/memoryos.v1.SystemService/GetMetrics"


def target(settings: Settings) -> str:
    """Where the gRPC servers are: `bridge.server`, else where the server of these settings listens.

    Raises:
        SettingsError: `bridge.server` is a list of anything but addresses of one family.
    """
    named = [part for part in (part.strip() for part in settings.bridge.server.split(",")) if part]
    if len(named) == 1:
        return named[0]
    if named:
        return _several(named)
    if settings.server.listen.startswith("unix:"):
        return settings.server.listen
    host, port = split_address(settings.server.listen, "server.listen")
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not listened on
    return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"


def _several(named: Sequence[str]) -> str:
    # gRPC takes several addresses in one target, but only one name.
    try:
        families = {ipaddress.ip_address(split_address(one, "bridge.server")[0]).version for one in named}
    except ValueError:
        families = set()
    if len(families) != 1:
        raise SettingsError(
            "bridge.server: a list holds IP addresses with ports, all IPv4 or all IPv6; for servers with names give "
            "one name that resolves to all of them"
        )
    return f"ipv{families.pop()}:{','.join(named)}"


def entries(methods: Sequence[Method], remote: Remote, forwarding: Forwarding, metrics: Metrics) -> list[Entry]:
    """Every route that is served.

    Raises:
        SchemaError: The protos cannot be served.
    """
    by_path = {method.path: method for method in methods}
    custom: dict[str, Handler] = {}
    for create, stream in openai.PAIRS:
        if create in by_path and stream in by_path:
            custom[create] = openai.ChatRoute(by_path[create], by_path[stream], remote, forwarding)
    if _METRICS in by_path:
        custom[_METRICS] = MetricsRoute(metrics, by_path[_METRICS], remote, forwarding)
    codec = Codec()
    made = transcoded(methods, codec, remote, forwarding, custom)
    return made + docs.entries(methods, codec)


def create_app(
    settings: Settings,
    methods: Sequence[Method] | None = None,
    *,
    log: FilteringBoundLogger | None = None,
) -> FastAPI:
    """The bridge as an ASGI application; its lifespan owns the channel to the server, `state.remote`.

    Args:
        settings: The settings.
        methods: The RPCs to serve; default: those of the protos.
        log: Where it logs; default: as the settings say.

    Raises:
        SettingsError: A setting is malformed.
        SchemaError: The protos cannot be served.
    """
    served = schema.load() if methods is None else tuple(methods)
    forwarding = Forwarding(settings.bridge.secret, settings.bridge.trusted_proxies)
    metrics = Metrics()

    spans: list[Spans] = [NO_SPANS]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if settings.telemetry.endpoint:
                from memoryos.spans import exported

                spans[0] = await stack.enter_async_context(exported(settings.telemetry, "bridge"))
            remote = Remote(target(settings), settings.server.max_message_bytes, towards_server(settings))
            stack.push_async_callback(remote.close)
            gate = Gate(settings, remote)
            most, share = settings.bridge.max_concurrent_requests, settings.bridge.address_share
            admission = Admission(most, share, forwarding.place, metrics)
            report = next((method for method in served if method.path == unknown.PATH), None)
            told = unknown.UnknownRoutes(report, remote, forwarding).report if report else None
            table = RouteTable(entries(served, remote, forwarding, metrics), gate.check, admission, told)
            app.router.routes[:] = [table]
            await remote.info()
            app.state.remote = remote
            yield

    app = FastAPI(
        title="MemoryOS",
        version=memoryos.__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    # In place of the framework's own stack, whose layers would each be passed twice a request: one route takes everything, and
    # the boundary answers whatever fails.
    app.middleware_stack = Boundary(
        app.router,
        metrics=metrics,
        log=log or logs.make(settings.log),
        cors_origins=settings.bridge.cors_origins,
        body_idle=settings.bridge.body_idle_seconds,
        guards=Guards(tls=bool(settings.bridge.tls.cert_file)),
        spans=lambda: spans[0],
    )
    return app
