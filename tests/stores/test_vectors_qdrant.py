"""What only a live Qdrant server asks of its family: schema, several servers at once, outages, keys and TLS."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from qdrant_client import grpc as q

from memoryos_server.domain.core.faults import BackendDown, Exists
from memoryos_server.domain.ports import IndexedRecord, Record, RecordFilter, SearchQuery
from memoryos_server.stores.breaker import OPEN_SECONDS
from memoryos_server.stores.qdrant_link import KeyRefused, QdrantLink
from memoryos_server.stores.qdrant_probe import probe
from memoryos_server.stores.qdrant_schema import SCHEMA, SchemaDiffers
from memoryos_server.stores.vectors_qdrant import QdrantVectors
from tests.stores.embedded_fixtures import DENSE, Keys, indexed, subject, turn
from tests.stores.qdrant_fixtures import Place, QdrantServer, clear, fresh_prefix

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def prefix(place: Place) -> AsyncIterator[str]:
    name = fresh_prefix()
    yield name
    await clear(place, name)


@pytest.fixture
async def link(place: Place) -> AsyncIterator[QdrantLink]:
    made = QdrantLink(place, deadline=10.0)
    yield made
    await made.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[QdrantServer]:
    """A server that a test may kill."""
    server = QdrantServer(tmp_path / "own").start()
    yield server
    server.stop(signal.SIGKILL)


def record(text: str = "tea", version: int = 1) -> Record:
    return Record(str(uuid4()), "memory", version, text, "rule", NOON, NOON, NOON)


def found_by(made: Record, *small: float) -> IndexedRecord:
    return IndexedRecord(made, {word: 1.0 for word in made.text.split()}, {"small": small} if small else {})


async def test_collections_when_many_servers_start_at_once_then_they_are_made_once_and_whole(
    place: Place, prefix: str, link: QdrantLink
) -> None:
    async with AsyncExitStack() as stack:
        several = [
            await stack.enter_async_context(QdrantVectors(place, Keys(), DENSE, prefix=prefix)) for _ in range(8)
        ]
        await asyncio.gather(*(one.look() for one in several))
    names = [one.name for one in (await link.call(link.collections.List, q.ListCollectionsRequest())).collections]
    mine = sorted(name for name in names if name.startswith(prefix))
    assert [name.removeprefix(prefix)[:7] for name in mine] == ["_dense_", "_main"]
    for name in mine:
        info = (await link.call(link.collections.Get, q.GetCollectionInfoRequest(collection_name=name))).result
        assert info.config.metadata["memoryos_schema"].integer_value == SCHEMA
        assert info.payload_schema["s"].params.keyword_index_params.is_tenant
        assert {"s", "ts", "te", "y", "v"} <= info.payload_schema.keys()


async def test_collections_when_a_start_ended_midway_then_the_next_completes_them(
    place: Place, prefix: str, link: QdrantLink
) -> None:
    async with QdrantVectors(place, Keys(), {}, prefix=prefix) as vectors:
        await link.call(link.collections.Create, vectors._schema._main())  # and then it was killed
        await vectors.insert(subject(), [indexed(turn())])
    request = q.GetCollectionInfoRequest(collection_name=f"{prefix}_main")
    assert {"s", "q", "cr"} <= (await link.call(link.collections.Get, request)).result.payload_schema.keys()


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (
            {"memoryos_schema": q.Value(integer_value=SCHEMA + 1)},
            f"has schema {SCHEMA + 1}, but this version reads schema",
        ),
        ({}, "was not made by MemoryOS"),
        ({"memoryos_schema": q.Value(integer_value=SCHEMA)}, "does not weigh words by their rarity"),
    ],
)
async def test_collections_when_they_are_not_as_they_should_be_then_they_are_refused_and_left_alone(
    place: Place,
    prefix: str,
    link: QdrantLink,
    metadata: dict[str, q.Value],
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    terms = q.SparseVectorConfig(map={"lexical": q.SparseVectorParams()})
    made = q.CreateCollection(collection_name=f"{prefix}_main", sparse_vectors_config=terms, metadata=metadata)
    await link.call(link.collections.Create, made)
    async with QdrantVectors(place, Keys(), DENSE, prefix=prefix) as vectors:
        with pytest.raises(SchemaDiffers, match=says):
            await vectors.look()
        caplog.clear()
        # Whoever calls all the same, as a server does that was started while Qdrant was down.
        for call in (vectors.insert(subject(), [indexed(turn())]), vectors.old_dense(), vectors.drop_old_dense()):
            with pytest.raises(BackendDown, match="cannot be used as it is; the server's log says why"):
                await call
        assert [says in said.getMessage() for said in caplog.records if "cannot be used" in said.getMessage()] == [True]
    settings = {"url": f"http://{place.host}:{place.port}", "api_key": place.api_key, "ca_file": "", "patience": 5.0}
    finding = await probe(settings | {"collection_prefix": prefix})
    assert (finding["state"], says in finding["text"]) == ("broken", True)
    names = [one.name for one in (await link.call(link.collections.List, q.ListCollectionsRequest())).collections]
    assert [name for name in names if name.startswith(prefix)] == [f"{prefix}_main"]


async def test_server_when_it_is_too_old_then_it_is_refused(tmp_path: Path) -> None:
    # It would read over what it does not know of a request, and answer wrongly.
    server = QdrantServer(tmp_path / "old", "--version", "1.18.2").start()
    try:
        async with QdrantVectors(Place.of(server.url), Keys(), DENSE) as vectors:
            with pytest.raises(SchemaDiffers, match=r"version 1\.18\.2; MemoryOS needs 1\.19 or newer"):
                await vectors.look()
    finally:
        server.stop()


async def test_insert_when_another_server_was_faster_then_its_turn_and_vectors_stay(
    place: Place, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, first = subject(), turn("first")
    second = turn("second", id=first.id)

    async def nothing(*asked: object, **more: object) -> dict[str, dict[str, object]]:
        return {}  # as it was when it looked

    async with QdrantVectors(place, Keys(), DENSE, prefix=prefix) as vectors:
        await vectors.insert(ann, [indexed(first, small=[1, 0, 0, 0])])
        with monkeypatch.context() as patched:
            patched.setattr(vectors._points, "read", nothing)
            await vectors.insert(ann, [indexed(second, small=[0, 1, 0, 0])])
        assert await vectors.get(ann, [first.id]) == [first]
        assert await vectors.near(ann, {"small": [1, 0, 0, 0]}, 1) == [(first.id, pytest.approx(1.0, abs=1e-3))]
        assert not len(await vectors.search(ann, SearchQuery({"lexical": {"second": 1.0}}, {}, 5)))


async def test_put_when_servers_race_then_the_highest_version_and_its_vectors_stay(place: Place, prefix: str) -> None:
    ann, keys, first = subject(), Keys(), record("zero", 1)
    async with (
        QdrantVectors(place, keys, DENSE, prefix=prefix) as one,
        QdrantVectors(place, keys, DENSE, prefix=prefix) as two,
    ):
        await one.put(ann, [found_by(first, 1, 0, 0, 0)])
        versions = [replace(first, version=version, text=f"text{version}") for version in range(2, 14)]
        puts = [
            (one, two)[number % 2].put(ann, [found_by(made, 0, 1, 0, made.version)])
            for number, made in enumerate(reversed(versions))
        ]
        await asyncio.gather(*puts)
        for vectors in (one, two):
            assert await vectors.records(ann, [first.id]) == [versions[-1]]
            assert await vectors.coverage() == (1, 1)
        dense = await one._points.read([first.id], "v", collection=one._schema.dense or "")
        assert dense == {first.id: {"v": 13}}


async def test_put_when_an_id_becomes_another_s_meanwhile_then_theirs_stays(place: Place, prefix: str) -> None:
    ann, bob, keys, made = subject("ann"), subject("bob"), Keys(), record()
    async with QdrantVectors(place, keys, DENSE, prefix=prefix) as vectors:
        read = vectors._points.read

        async def nothing(ids: object, *fields: str, collection: str = "") -> dict[str, dict[str, object]]:
            await vectors.put(bob, [found_by(made)]) if vectors._points.read is nothing and restore() else None
            return {}

        def restore() -> bool:
            vectors._points.read = read  # type: ignore[method-assign]
            return True

        vectors._points.read = nothing  # type: ignore[method-assign,assignment]
        await vectors.put(ann, [found_by(replace(made, version=9))])
        assert await vectors.owner(made.id) == bob.id
        assert await vectors.records(bob, [made.id]) == [made]
        with pytest.raises(Exists):
            await vectors.put(ann, [found_by(replace(made, version=9))])


async def test_add_dense_when_the_point_goes_or_changes_meanwhile_then_no_vector_of_it_is_left(
    place: Place, prefix: str
) -> None:
    ann, keys, gone, changed = subject(), Keys(), turn(), record()
    async with QdrantVectors(place, keys, DENSE, prefix=prefix) as vectors:
        await vectors.insert(ann, [indexed(gone)])
        await vectors.put(ann, [found_by(changed)])
        upsert = vectors._points.upsert

        async def late(collection: str, points: list[object], **how: object) -> None:
            vectors._points.upsert = upsert  # type: ignore[method-assign]
            await vectors.remove(ann, [gone.id])
            await vectors.put(ann, [found_by(replace(changed, version=2))])
            await upsert(collection, points, **how)

        vectors._points.upsert = late  # type: ignore[method-assign,assignment]
        await vectors.add_dense(ann, [(one, {"small": [1, 0, 0, 0]}) for one in (gone.id, changed.id)], {changed.id: 1})
        assert await vectors.coverage() == (1, 0)
        assert await vectors.near(ann, {"small": [1, 0, 0, 0]}, 5) == []


async def test_dense_when_another_server_drops_the_collection_in_use_then_it_is_made_again(
    place: Place, prefix: str
) -> None:
    ann, keys, said = subject(), Keys(), turn("tea")
    async with (
        QdrantVectors(place, keys, DENSE, prefix=prefix) as old,
        QdrantVectors(place, keys, {"other": 3}, prefix=prefix) as new,
    ):
        await old.insert(ann, [indexed(said, small=[1, 0, 0, 0])])
        await new.look()
        assert await new.drop_old_dense() == 1
        with pytest.raises(BackendDown):
            await old.search(ann, SearchQuery({}, {"small": [1, 0, 0, 0]}, 5))
        assert await old.near(ann, {"small": [1, 0, 0, 0]}, 5) == []
        assert [stored.id for stored in await old.unembedded("", 5)] == [said.id]


async def test_writes_when_the_server_is_killed_then_what_was_acknowledged_is_there(own: QdrantServer) -> None:
    ann, keys, said, made = subject(), Keys(), turn("tea"), record()
    regained = []
    async with QdrantVectors(Place.of(own.url), keys, DENSE) as vectors:
        vectors.on_reconnect(lambda: regained.append(True))
        took = {
            await vectors.insert(ann, [indexed(said, small=[1, 0, 0, 0])]),
            await vectors.put(ann, [found_by(made)]),
        }
        took.add(await vectors.flush())
        own.stop(signal.SIGKILL)
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(BackendDown, match="not reachable"):
                await vectors.get(ann, [said.id])
        assert time.monotonic() - began < 2
        assert not len(regained)
        own.start()
        end = time.monotonic() + 5
        while True:
            try:
                assert await vectors.get(ann, [said.id]) == [said]
                break
            except BackendDown:
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
        assert regained == [True]
        assert await vectors.records(ann, [made.id]) == [made]
        assert [name for name, _ in await vectors.near(ann, {"small": [1, 0, 0, 0]}, 5)] == [said.id]
        assert took == {await vectors.flush()}


async def test_call_when_the_server_hangs_then_it_is_down_in_time_and_later_ones_at_once(own: QdrantServer) -> None:
    ann, said = subject(), turn()
    async with QdrantVectors(Place.of(own.url), Keys(), DENSE, deadline=1.0) as vectors:
        await vectors.insert(ann, [indexed(said)])
        own.send(signal.SIGSTOP)
        try:
            waits = []
            for _ in range(4):
                began = time.monotonic()
                with pytest.raises(BackendDown, match="does not answer in time"):
                    await vectors.get(ann, [said.id])
                waits.append(time.monotonic() - began)
            assert 0.9 < waits[0] < 1.6
            assert sum(waits) < OPEN_SECONDS + 1.0
            assert waits[-1] < 0.1
        finally:
            own.send(signal.SIGCONT)
        await asyncio.sleep(0.5)
        assert await vectors.get(ann, [said.id]) == [said]


async def test_server_when_it_is_away_at_the_start_then_it_is_used_once_it_is_there(own: QdrantServer) -> None:
    ann, said = subject(), turn()
    own.stop()
    async with QdrantVectors(Place.of(own.url), Keys(), DENSE) as vectors:
        for call in (vectors.look, vectors.ping):
            with pytest.raises(BackendDown):
                await call()
        own.start()
        await asyncio.sleep(1.2)
        await vectors.insert(ann, [indexed(said)])
        assert await vectors.get(ann, [said.id]) == [said]


async def test_key_when_it_is_wrong_or_right_then_only_the_right_one_is_let_in(tmp_path: Path) -> None:
    server = QdrantServer(tmp_path / "own", "--api-key", "right").start()
    try:
        for key in ("", "wrong"):
            async with QdrantVectors(Place.of(server.url, api_key=key), Keys(), DENSE) as vectors:
                with pytest.raises(KeyRefused):
                    await vectors.look()
            finding = doctor(server.url, api_key=key)
            assert finding["state"] == "broken"
            assert "refuses the key" in finding["text"]
        async with QdrantVectors(Place.of(server.url, api_key="right"), Keys(), DENSE) as vectors:
            await vectors.insert(subject(), [indexed(turn())])
        assert doctor(server.url, api_key="right")["state"] == "ok"
    finally:
        server.stop()


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = directory / "cert.pem", directory / "key.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return public, private


async def test_tls_when_the_authority_is_given_then_it_works_and_else_says_what_is_wrong(tmp_path: Path) -> None:
    public, private = certificate(tmp_path)
    options = ("--certificate", str(public), "--private-key", str(private), "--api-key", "k")
    server = QdrantServer(tmp_path / "own", *options).start()
    try:
        place = Place.of(server.url, api_key="k", ca_file=str(public))
        async with QdrantVectors(place, Keys(), DENSE) as vectors:
            await vectors.insert(subject(), [indexed(turn())])
        assert doctor(server.url, api_key="k", ca_file=str(public))["state"] == "ok"
        untrusted = doctor(server.url, api_key="k")
        assert (untrusted["state"], "TLS" in untrusted["text"], "ca_file" in untrusted["hint"]) == (
            "broken",
            True,
            True,
        )
        plain = doctor(server.url.replace("https", "http"), api_key="k")
        assert plain["state"] == "broken"
    finally:
        server.stop()


def doctor(url: str, *, api_key: str = "", ca_file: str = "") -> dict[str, str]:
    """What the server's part of `memoryos doctor` finds, as `doctor` asks it."""
    asked = {"url": url, "api_key": api_key, "ca_file": ca_file, "collection_prefix": "memoryos", "patience": 3.0}
    command = [sys.executable, "-m", "memoryos_server.stores.qdrant_probe"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=30, check=True)
    return dict(json.loads(done.stdout))


def test_doctor_when_nothing_or_something_else_listens_then_it_says_so(own: QdrantServer) -> None:
    good = doctor(own.url)
    assert good["state"] == "ok"
    assert "will be made" in good["text"]
    own.stop()
    refused = doctor(own.url)
    assert (refused["state"], "cannot be reached" in refused["text"]) == ("broken", True)
    malformed = doctor("localhost:6334")
    assert (malformed["state"], "is no URL" in malformed["text"]) == ("broken", True)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("http://localhost", "localhost", 6334, False),
        ("http://localhost:6333/", "localhost", 6334, False),
        ("https://x.cloud.qdrant.io:7000", "x.cloud.qdrant.io", 7000, True),
        ("http://[::1]:6334", "::1", 6334, False),
    ],
)
def test_url_when_it_is_one_then_it_names_the_grpc_port(url: str, host: str, port: int, tls: bool) -> None:
    assert Place.of(url) == Place(host, port, tls)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:6334", "grpc://x", "http://x:99999", "http://u:p@x", "http://x/path", "http://x?y=1", "http://"],
)
def test_url_when_it_is_none_then_it_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no URL of a Qdrant server"):
        Place.of(url)


@pytest.mark.parametrize("url", ["https://:s3cret@x:6334", "https://x:6334?api-key=s3cret", "s3cret"])
def test_url_when_it_holds_a_key_then_no_message_repeats_it(url: str) -> None:
    with pytest.raises(ValueError, match="no URL of a Qdrant server") as refused:
        Place.of(url)
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in repr(Place.of("https://x", api_key="s3cret"))


async def test_scan_when_records_are_many_then_each_comes_once_in_the_order_of_ids(place: Place, prefix: str) -> None:
    ann, made = subject(), [record() for _ in range(150)]
    async with QdrantVectors(place, Keys(), {}, prefix=prefix) as vectors:
        await vectors.put(ann, [found_by(one) for one in made])
        got = [one.id async for one in vectors.scan(ann, RecordFilter("memory"))]
    assert got == sorted(one.id for one in made)
