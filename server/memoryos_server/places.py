"""The ends of a move: the stores that `memoryos migrate` reads and writes, opened while no server runs on them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from memoryos.settings import Settings
from memoryos_server.app import InUse, StartError
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.opening import VectorsUnusable, open_portable
from memoryos_server.stores.embedded import ChildFailedError, DataDirectoryInUseError, EmbeddedStores
from memoryos_server.stores.keyring import KeyringError, MasterKeys
from memoryos_server.stores.migrate import Place
from memoryos_server.stores.portable_points import EdgePoints, PortablePoints
from memoryos_server.stores.redis_client import Client, socket_url
from memoryos_server.stores.redis_opening import live_redis
from memoryos_server.stores.redis_url import Endpoint
from memoryos_server.stores.scope import CHANGES


def is_there(settings: Settings, which: str) -> bool:
    """Whether opening this end would make no data directory."""
    kind, _, where = which.partition(":")
    data = Path(where or settings.data_dir)
    if kind == "embedded" or not settings.redis.url:
        return (data / "valkey").is_dir()
    return bool(settings.qdrant.url) or (data / "vectors").is_dir()


@asynccontextmanager
async def open_place(settings: Settings, which: str, *, exists: bool) -> AsyncIterator[Place]:
    """One end of a move.

    Args:
        settings: Where the stores are.
        which: `embedded` (the data directory of the settings), `embedded:DIR`, or `live`: the stores that the settings
            name. If they name only one, the other side is the embedded one in the data directory.
        exists: Whether it must be there already.

    Raises:
        InUse: A server, or the other end, has it.
        SettingsError: A setting cannot be used.
        StartError: The stores cannot be opened, or `which` names none.
    """
    kind, _, where = which.partition(":")
    if kind != "embedded" and which != "live":
        raise StartError(f"{which!r} is neither embedded, embedded:DIR nor live")
    data = Path(where or settings.data_dir)
    async with AsyncExitStack() as stack:
        try:
            if kind == "embedded":
                place = await _embedded(stack, settings, data, exists=exists)
            else:
                place = await _live(stack, settings, data, exists=exists)
        except DataDirectoryInUseError as error:
            if error.pid == os.getpid():
                raise InUse(f"both ends would be in {data}: move it aside and name it, as embedded:DIR") from error
            raise InUse(f"{error}: stop the server first") from error
        except (ChildFailedError, KeyringError, VectorsUnusable, OSError) as error:
            raise StartError(str(error)) from error
        yield place


async def _embedded(stack: AsyncExitStack, settings: Settings, data: Path, *, exists: bool) -> Place:
    if exists and not (data / "valkey").is_dir():
        raise StartError(f"there is no embedded store in {data}")
    security = settings.security
    keys = MasterKeys(security.master_key, security.key_dir, data, previous=security.previous_master_key)
    stores = await stack.enter_async_context(EmbeddedStores(data, {}))
    client = await _client(stack, socket_url(stores.redis_socket))
    points = await stack.enter_async_context(EdgePoints(stores.vectors_socket))
    return Place(f"the embedded store in {data}", client, points, keys)


async def _live(stack: AsyncExitStack, settings: Settings, data: Path, *, exists: bool) -> Place:
    """The stores that the settings name.

    Raises:
        As `open_place`, with the errors of the parts.
    """
    endpoint = live_redis(settings)
    if endpoint is None and not settings.qdrant.url:
        raise StartError("no store is live: set redis.url, qdrant.url or both")
    if exists and endpoint is None and not (data / "valkey").is_dir():
        raise StartError(f"there is no embedded store in {data}")
    stores = EmbeddedStores(data, None if settings.qdrant.url else {}, valkey=endpoint is None)
    if endpoint is None or not settings.qdrant.url:
        await stack.enter_async_context(stores)
    client = await _client(stack, endpoint or socket_url(stores.redis_socket))
    if endpoint is not None:
        await _nobody_on(endpoint, client)
    points: PortablePoints
    if settings.qdrant.url:
        points = await stack.enter_async_context(open_portable(settings))
    else:
        points = await stack.enter_async_context(EdgePoints(stores.vectors_socket))
    # Servers that share a store have no key directory.
    security = settings.security
    key_dir = None if endpoint is not None else security.key_dir
    keys = MasterKeys(security.master_key, key_dir, data, previous=security.previous_master_key)
    name = f"the live store {endpoint}" if endpoint is not None else f"the store of {settings.qdrant.url} and {data}"
    return Place(name, client, points, keys)


async def _client(stack: AsyncExitStack, where: str | Endpoint) -> Client:
    client = Client(where)
    stack.push_async_callback(client.aclose)
    return client


async def _nobody_on(endpoint: Endpoint, client: Client) -> None:
    """Sees that no server runs on a live store: every one listens to what others change.

    Raises:
        InUse: One does.
        StartError: The store does not answer.
    """
    try:
        servers = await client.listeners(CHANGES)
    except BackendDown as fault:
        raise StartError(f"{endpoint}: {fault.message}") from fault
    if servers:
        raise InUse(
            f"{servers} running server{'s are' if servers > 1 else ' is'} on {endpoint}: stop every server first"
        )
