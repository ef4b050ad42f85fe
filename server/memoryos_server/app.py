"""The composition root: what the server is made of, in the order in which it is opened.

Only this module, `opening`, `places`, `defending` and `wiring` construct. Everything is opened on one stack, so that a stop
closes it in the opposite order, and a start that fails half-way leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from memoryos import schema
from memoryos.settings import Loaded, Settings, SettingsError
from memoryos.tracing import NO_SPANS, Spans
from memoryos_server import operator, wiring
from memoryos_server.defending import make_defense
from memoryos_server.domain.admin.auditing import AuditService
from memoryos_server.domain.admin.budgets import Budgets
from memoryos_server.domain.admin.keys import KeyService
from memoryos_server.domain.admin.metering import Meter
from memoryos_server.domain.chat.embeddings import EmbeddingService
from memoryos_server.domain.core import faultpoints
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.defense.service import DefenseService
from memoryos_server.domain.memory.deadletters import DeadLetters
from memoryos_server.domain.recall.analysis import ANALYSIS_VERSION
from memoryos_server.health import Health
from memoryos_server.opening import VectorsUnusable, open_vectors
from memoryos_server.operator import House, Operator
from memoryos_server.operator_privacy import PrivacyDesk
from memoryos_server.rpc import logging as rpc_logging
from memoryos_server.rpc.audit import Audit, AuditWriter
from memoryos_server.rpc.audit_servicer import AuditServicer
from memoryos_server.rpc.auth import Auth
from memoryos_server.rpc.defense import Door, UnknownMethods
from memoryos_server.rpc.defense_servicer import DefenseServicer
from memoryos_server.rpc.embedding_servicer import EmbeddingServicer
from memoryos_server.rpc.grpc_health import HealthBoard
from memoryos_server.rpc.interceptors import standard
from memoryos_server.rpc.memory_metrics import MemoryMetrics, QueueWatch
from memoryos_server.rpc.metrics import Metrics, MetricsListener
from memoryos_server.rpc.server import RpcServer
from memoryos_server.rpc.system_servicer import SystemServicer
from memoryos_server.stores.audit_trail import ChainTrail
from memoryos_server.stores.backup import Backups
from memoryos_server.stores.chain_adding import Adder
from memoryos_server.stores.chain_log import ChainLog
from memoryos_server.stores.chain_verify import Verifier
from memoryos_server.stores.embedded import (
    ChildFailedError,
    DataDirectoryInUseError,
    EmbeddedStores,
    private_dir,
    running_dir,
)
from memoryos_server.stores.heads import SignedHeads
from memoryos_server.stores.keyring import KeyringError
from memoryos_server.stores.manifest import Expected, ManifestMismatch, VectorModel
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import socket_url
from memoryos_server.stores.redis_opening import live_redis, master_keys, open_redis
from memoryos_server.stores.retention import Retention
from memoryos_server.stores.rotation import Rotated, rotate_master
from memoryos_server.stores.sequencer import Sequencer
from memoryos_server.tools.embed.identity import IdentifiedEmbedder
from memoryos_server.tools.embed.opening import NONE, open_embedder

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


VECTOR_CALLS = ("insert", "put", "search", "find", "near", "get", "records", "page", "said", "remove")
"""The calls of the vector store that make spans."""


class StartError(RuntimeError):
    """The server or its stores cannot be opened; the message says why and what to do."""


class InUse(StartError):
    """Another process owns the data directory."""


def operator_dir(settings: Settings) -> Path:
    """Where a running server takes commands of its operator."""
    return running_dir(Path(settings.data_dir))


def main(loaded: Loaded) -> None:
    """Runs the server until SIGTERM or SIGINT.

    Raises:
        SettingsError: A setting cannot be used.
        StartError: Something it is made of cannot be opened.
    """
    uvloop.run(run(loaded))


async def run(loaded: Loaded) -> None:
    """As `main`, on the loop that runs."""
    settings = loaded.settings
    try:
        faultpoints.arm(os.environ.get(faultpoints.ENVIRONMENT, ""))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    logger = rpc_logging.configure(settings.log.level, settings.log.format)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with AsyncExitStack() as stack:
        await _open(stack, settings, logger)
        # What start-up made lives as long as the process, and a call makes hundreds of short-lived objects without cycles:
        # at Python's own pace the collector would take as long as the ranking.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        await stop.wait()
        logger.info("stopping")


async def _open(stack: AsyncExitStack, settings: Settings, logger: FilteringBoundLogger) -> None:
    try:
        embedder = await stack.enter_async_context(
            open_embedder(settings.embedding, Path(settings.embedding.cache_dir), progress=_progress)
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error
    # A model that was asked for and is not there is worth a warning, which terminals show.
    wanted = not embedder.names and settings.embedding.model != NONE
    (logger.warning if wanted else logger.info)("embedder", status=embedder.status())
    # The children are started before gRPC has threads, and by the thread that lives as long as the server.
    embedded, redis = await stack.enter_async_context(_stores(settings, embedder))
    for note in redis.manifest.notes:
        logger.warning("store", note=note)
    try:
        vectors = await stack.enter_async_context(
            open_vectors(settings, embedder, redis.subjects, embedded.vectors_socket, logger)
        )
    except VectorsUnusable as error:
        raise StartError(str(error)) from error
    spans = await _spans(stack, settings, redis, vectors)
    metrics = Metrics()
    counts = MemoryMetrics(metrics, settings.memory.max_backlog)
    # Before what has events written: both are left after it.
    adder = Adder(redis.chain, _signed_heads(settings, redis))
    sequencer = await stack.enter_async_context(
        Sequencer(redis.client, redis.audit, adder, refused=metrics.audit_refused.inc)
    )
    writer = await stack.enter_async_context(AuditWriter(ChainLog(redis.audit, adder), metrics=metrics, logger=logger))
    defense = await stack.enter_async_context(make_defense(settings, redis, writer.put))
    memory = await wiring.open_memory(
        stack,
        settings,
        redis,
        vectors,
        embedder,
        counts=counts,
        answered=metrics.answered,
        spans=spans,
        progress=_progress,
        shield=wiring.open_shield(
            settings,
            metrics.suspected,
            writer.put,
            lambda address, key_id, _kind: defense.guard.suspected(key_id, address),
        ),
    )
    receipts = await wiring.open_receipts(stack, settings, memory)
    meter = await stack.enter_async_context(Meter(redis.usage))
    budgets = await stack.enter_async_context(Budgets(redis.budgets, refused=metrics.over_budget))
    chat = wiring.open_chat(stack, settings, memory, counts, metrics.spent, meter, budgets, receipts)
    letters = DeadLetters(redis.queue)
    await stack.enter_async_context(QueueWatch(letters, counts))

    await _check_first_key(settings, KeyService(redis.keys, redis.audit))
    methods = schema.load()
    board = HealthBoard(dict.fromkeys(method.service for method in methods))
    health = await stack.enter_async_context(
        Health(
            redis=redis.ping,
            vectors=vectors.ping,
            board=board,
            metrics=metrics,
            logger=logger,
            ready_when_noop=settings.health.ready_when_noop,
            breakers={"redis": redis.client.breaker, "qdrant": vectors.breaker},
        )
    )
    keys = KeyService(redis.keys, redis.audit, writer.put, spare_admin=bool(settings.auth.admin_key))
    await stack.enter_async_context(MetricsListener(metrics, settings.server.metrics_listen))
    auth = Auth(
        enabled=settings.auth.enabled,
        admin_key=settings.auth.admin_key,
        keys=redis.keys,
        bridge_secret=settings.bridge.secret,
    )
    door = Door(defense.guard, auth, metrics)
    around = standard(
        methods,
        metrics=metrics,
        logger=logger,
        serving=health,
        auth=auth,
        audit=Audit(writer),
        door=door,
        max_calls=settings.server.max_concurrent_calls,
        spans=spans,
    )
    retention = await stack.enter_async_context(_retention(settings, redis, sequencer))
    trail = ChainTrail(redis.audit, redis.chain, retention, sequencer.now)
    privacy = await wiring.open_privacy(stack, settings, memory, chat, receipts, keys, trail, writer.flush)
    # Live stores have backups of their own, taken where they run.
    heads = _signed_heads(settings, redis)
    backups = (
        Backups(embedded, redis, memory.pipeline.held, retention.still, heads) if _all_embedded(settings) else None
    )
    desk = PrivacyDesk(privacy, redis.erasures, redis.audit, operator.ACTOR)
    house = House(backups, retention, redis.audit, _verifier(settings, redis, retention), _rotation(redis), desk)
    commands = Operator(keys, redis.audit, letters, defense, house)
    directory = operator_dir(settings)
    private_dir(directory)  # no embedded store may have made it
    await stack.enter_async_context(operator.serve(commands, directory))
    await stack.enter_async_context(
        RpcServer(
            settings.server,
            auth_enabled=settings.auth.enabled,
            insecure=settings.insecure,
            methods=methods,
            servicers={
                "memoryos.v1.SystemService": SystemServicer(
                    serving=health, metrics=metrics, auth_enabled=settings.auth.enabled
                ),
                "memoryos.v1.EmbeddingService": EmbeddingServicer(
                    EmbeddingService(embedder, settings.embedding.model or "minilm", embedder.status(), memory.upstream)
                ),
                "memoryos.v1.DefenseService": DefenseServicer(DefenseService(defense), door, auth),
                **wiring.servicers(settings, memory, chat, letters, meter, receipts, keys, privacy),
                "memoryos.v1.AuditService": AuditServicer(AuditService(trail)),
            },
            around=around,
            door=door.stop,
            unknown=UnknownMethods(door, auth),
            serving=health,
            board=board,
            logger=logger,
        )
    )
    health.serve()


async def _spans(stack: AsyncExitStack, settings: Settings, redis: RedisStore, vectors: wiring.SearchStore) -> Spans:
    """What makes spans, told of the stores; without a collector nothing is imported and the stores stay as they are.

    Raises:
        SettingsError: The settings of telemetry cannot be used.
    """
    if not settings.telemetry.endpoint:
        return NO_SPANS
    from memoryos.spans import exported, watch_store

    spans = await stack.enter_async_context(exported(settings.telemetry, "server"))
    watch_store(spans, redis.client, "redis", ("run", "batch"))
    watch_store(spans, vectors, "qdrant", VECTOR_CALLS)
    return spans


@asynccontextmanager
async def open_operator(settings: Settings, *, points: bool = False) -> AsyncIterator[Operator]:
    """Commands on the stores while no server runs here; of embedded ones it takes the lock and starts what they need.

    Args:
        settings: Where the stores are.
        points: Whether the command reads the searchable side, as a backup does.

    Raises:
        InUse: Another process owns the data directory.
        StartError: The stores cannot be opened.
    """
    async with _stores(settings, None, points=points) as (embedded, redis):
        # Nothing runs that could end an entry.
        retention = _retention(settings, redis, _sequencer(settings, redis))
        own = points and _all_embedded(settings)
        heads = _signed_heads(settings, redis)
        backups = Backups(embedded, redis, nullcontext, retention.still, heads) if own else None
        keys = KeyService(redis.keys, redis.audit)
        desk = PrivacyDesk(
            wiring.untended_privacy(redis, keys), redis.erasures, redis.audit, operator.ACTOR, whole=False
        )
        house = House(backups, retention, redis.audit, _verifier(settings, redis, retention), _rotation(redis), desk)
        # No call comes to it, so that it has nothing to record.
        defense = make_defense(settings, redis, lambda event: None)
        await defense.refresh()
        yield Operator(keys, redis.audit, DeadLetters(redis.queue), defense, house)


@asynccontextmanager
async def _stores(
    settings: Settings, embedder: IdentifiedEmbedder | None, *, points: bool = False
) -> AsyncIterator[tuple[EmbeddedStores, RedisStore]]:
    """Both stores, the Redis side embedded or live; without an embedder only that side, and with `points` also the other.

    Raises:
        InUse: Another process owns the data directory.
        SettingsError: A setting cannot be used.
        StartError: A store cannot be opened.
    """
    vectors = {}
    if embedder is not None and embedder.names:
        identity = embedder.identity
        vectors = {name: VectorModel(identity.name, identity.sha256, size) for name, size in embedder.names.items()}
    expected = Expected(analysis=str(ANALYSIS_VERSION), sealing=settings.security.sealing, vectors=vectors)
    data = Path(settings.data_dir)
    async with AsyncExitStack() as stack:
        try:
            live = live_redis(settings)
            keys = master_keys(settings)
            # None: no vector process.
            dense: dict[str, int] | None = {} if points else None
            if embedder is not None:
                dense = dict(embedder.names)
            if settings.qdrant.url:
                dense = None
            embedded = EmbeddedStores(
                data,
                dense,
                fingerprint=embedder.identity.fingerprint if embedder is not None else "",
                valkey=live is None,
            )
            if live is None or dense is not None:
                await stack.enter_async_context(embedded)
            where = live or socket_url(embedded.redis_socket)
            redis = await stack.enter_async_context(open_redis(settings, where, keys, expected))
        except DataDirectoryInUseError as error:
            raise InUse(str(error)) from error
        except (ChildFailedError, KeyringError, ManifestMismatch, OSError) as error:
            raise StartError(str(error)) from error
        except BackendDown as fault:
            raise StartError(f"{live}: {fault.message}" if live else fault.message) from fault
        yield embedded, redis


def _all_embedded(settings: Settings) -> bool:
    return not settings.redis.url and not settings.qdrant.url


def _signed_heads(settings: Settings, redis: RedisStore) -> SignedHeads:
    return SignedHeads(settings.security.key_dir, redis.manifest.store_id, redis.manifest.secrets)


def _sequencer(settings: Settings, redis: RedisStore) -> Sequencer:
    return Sequencer(redis.client, redis.audit, Adder(redis.chain, _signed_heads(settings, redis)))


def _retention(settings: Settings, redis: RedisStore, sequencer: Sequencer) -> Retention:
    # Of a store that servers share none may carry off a part into its own directory.
    days, shared = settings.retention.audit_days, bool(settings.redis.url)
    directory = Path(settings.data_dir) / "archive"
    return Retention(redis.client, redis.chain, sequencer.now, directory, audit_days=days, shared=shared)


def _verifier(settings: Settings, redis: RedisStore, retention: Retention) -> Callable[[str | None], Verifier]:
    heads = _signed_heads(settings, redis)
    return lambda tenant_id: Verifier(redis.chain, redis.audit, heads, retention.directory, tenant_id)


def _rotation(redis: RedisStore) -> Callable[[], Awaitable[Rotated]]:
    return partial(rotate_master, redis.client, redis.manifest.master)


async def _check_first_key(settings: Settings, keys: KeyService) -> None:
    if not settings.auth.enabled or settings.auth.admin_key:
        return
    try:
        there = await keys.has_admin()
    except BackendDown as fault:
        raise StartError(fault.message) from fault
    if not there:
        raise SettingsError(
            "auth.enabled is set but there is no admin key that has not expired: set auth.admin_key (MEMORYOS_AUTH__ADMIN_KEY), "
            "or make one with `memoryos keys create --admin`"
        )


def _progress(line: str) -> None:
    print(f"progress: {line}", flush=True)
