from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from tests.stores import embedded_fixtures
from tests.stores.qdrant_fixtures import REAL_URL, Opened, Place, QdrantServer, clear, fresh_prefix, opener, real
from tests.stores.redis_fixtures import EXPECTED, Connect, Valkey, free_port


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    (tmp_path / "valkey").mkdir()
    server = Valkey(tmp_path / "valkey")
    server.start()
    yield server
    server.remove()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Valkey]:
    """One node that owns every slot: it refuses whatever reaches over two, as a real cluster does."""
    (tmp_path / "cluster").mkdir()
    options = ("--cluster-port", str(free_port()), "--bind", "127.0.0.1")
    server = Valkey(tmp_path / "cluster", "--cluster-enabled", "yes", *options)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def master_keys(tmp_path: Path) -> MasterKeys:
    return MasterKeys("", tmp_path / "keys", tmp_path / "valkey")


@pytest.fixture
def connect(valkey: Valkey, master_keys: MasterKeys) -> Connect:
    """Opens one more replica's view of the store."""
    return lambda expected=EXPECTED, **options: RedisStore.connect(valkey.url, master_keys, expected, **options)


@pytest.fixture
async def store(connect: Connect) -> AsyncIterator[RedisStore]:
    async with connect() as opened:
        yield opened


@pytest.fixture(scope="session")
def qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantServer]:
    """A loopback server that all tests share; who kills one starts one of its own."""
    server = QdrantServer(tmp_path_factory.mktemp("qdrant")).start()
    yield server
    server.stop()


REAL = pytest.param("real", marks=pytest.mark.live)


def _place(request: pytest.FixtureRequest) -> Place:
    if request.param == "loopback":
        return Place.of(request.getfixturevalue("qdrant").url)
    place = real()
    if place is None:
        pytest.skip(f"{REAL_URL} is not set")
    return place


@pytest.fixture(params=["loopback", REAL])
def place(request: pytest.FixtureRequest) -> Place:
    """A Qdrant server: the loopback one, and a real one if there is one."""
    return _place(request)


@pytest.fixture(params=["embedded", "loopback", REAL])
async def opened(request: pytest.FixtureRequest) -> AsyncIterator[Opened]:
    """Opens vectors: of the embedded family, of the live one on the loopback server, and of that on a real server."""
    if request.param == "embedded":
        yield embedded_fixtures.opened
        return
    place, prefix = _place(request), fresh_prefix()
    yield opener(place, prefix)
    await clear(place, prefix)
