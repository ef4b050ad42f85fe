from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_url import parse
from tests.stores import embedded_fixtures
from tests.stores.qdrant_fixtures import REAL_URL, Opened, Place, QdrantServer, clear, fresh_prefix, opener, real
from tests.stores.redis_fixtures import EXPECTED, Connect, Valkey
from tests.system import free_port
from tests.valkeys import TcpValkey, ValkeyCluster

LIVE_URL = os.environ.get("MEMORYOS_TEST_REDIS_URL", "")
"""A live store that is empty, for `make test-live`: tests empty it again and again."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever asks for an opened store runs on each kind; what stops, kills or reads the server itself on the embedded one."""
    asked = set(inspect.signature(metafunc.function).parameters)
    if not asked & {"store", "connect"} or "family" in asked:
        return
    if "valkey" in asked:
        families = ["embedded"]
    else:
        live = pytest.param("live", marks=pytest.mark.live)
        families = ["embedded", "tcp", "cluster", *([live] if LIVE_URL else [])]
    metafunc.parametrize("family", families, indirect=True)


@pytest.fixture
def family(request: pytest.FixtureRequest) -> str:
    """What kind of store a test runs on."""
    return str(getattr(request, "param", "embedded"))


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


@pytest.fixture(scope="session")
def tcp_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpValkey]:
    """A server with a password on TCP, for the whole run."""
    server = TcpValkey(tmp_path_factory.mktemp("tcp") / "v", password="p@ss/word").start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """A cluster of three primaries, for the whole run. A node that a large script keeps busy is not taken for a dead one."""
    made = ValkeyCluster(tmp_path_factory.mktemp("cluster"), "--cluster-node-timeout", "15000").start()
    yield made
    made.remove()


@pytest.fixture
def store_url(family: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where an empty store of the family is."""
    if family == "embedded":
        yield request.getfixturevalue("valkey").url
        return
    if family == "live":
        yield from _live()
        return
    if family == "tcp":
        servers = [request.getfixturevalue("tcp_valkey")]
        url = servers[0].url.replace("p@ss/word", "p%40ss%2Fword")
    else:
        nodes: ValkeyCluster = request.getfixturevalue("three_nodes")
        servers, url = nodes.nodes, nodes.url
    for server in servers:
        server.admin.flushall()
        server.admin.config_set("maxmemory", 0)
    yield url


def _live() -> Iterator[str]:
    where = parse(LIVE_URL)
    if where.kind != "single":
        pytest.skip("only one server can be emptied here; for sentinels and clusters tests bring their own")
    admin = redis.Redis.from_url(LIVE_URL)
    if admin.dbsize():
        pytest.fail("the store at MEMORYOS_TEST_REDIS_URL is not empty: tests would delete what is in it")
    try:
        yield LIVE_URL
    finally:
        admin.flushdb()
        admin.close()


@pytest.fixture
def admins(family: str, store_url: str, request: pytest.FixtureRequest) -> Iterator[list[redis.Redis]]:
    """A client of its own for each server of the store, for what an operator does."""
    if family == "cluster":
        clients = [node.admin for node in request.getfixturevalue("three_nodes").nodes]
    else:
        clients = [redis.Redis.from_url(store_url)]
    yield clients
    for client in clients:
        client.close()


@pytest.fixture
def master_keys(tmp_path: Path) -> MasterKeys:
    return MasterKeys("", tmp_path / "keys", tmp_path / "valkey")


@pytest.fixture
def connect(store_url: str, master_keys: MasterKeys) -> Connect:
    """Opens one more replica's view of the store."""
    return lambda expected=EXPECTED, **options: RedisStore.connect(store_url, master_keys, expected, **options)


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
