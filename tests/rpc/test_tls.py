"""TLS of the gRPC server, over real sockets with real certificates."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from scratch.v1 import scratch_service_pb2 as pb
from scratch.v1 import scratch_service_pb2_grpc

from memoryos.settings import SettingsError, TlsSettings
from memoryos.tls import Tls
from tests.certificates import Authority, read, serial, write
from tests.rpc.test_calls import eventually
from tests.scratch.serve import Scratch, run_scratch


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def stub(address: str, tls: Tls) -> AsyncIterator[Any]:
    async with grpc.aio.secure_channel(address, tls.credentials(), tls.options()) as channel:
        yield scratch_service_pb2_grpc.ScratchServiceStub(channel)


async def answers(address: str, tls: Tls) -> bool:
    """Whether the server serves a client that speaks TLS so."""
    async with stub(address, tls) as made:
        try:
            answer = await made.ProbeThing(pb.ProbeThingRequest(), timeout=3)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
    return bool(answer.state == "fresh")


def shown(address: str) -> int:
    """The serial number of the certificate that is shown."""
    host, port = address.rsplit(":", 1)
    return serial(ssl.get_server_certificate((host, int(port)), timeout=3))


def lines(running: Scratch, event: str) -> list[dict[str, Any]]:
    parsed = [json.loads(line) for line in running.log.getvalue().splitlines()]
    return [line for line in parsed if line["event"] == event]


async def test_tls_when_the_authority_is_trusted_then_served_and_otherwise_not(ca: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    async with run_scratch(tls=TlsSettings(*ca.issue("server"))) as running:
        assert await answers(running.address, Tls(ca.file))
        assert not await answers(running.address, Tls(other.file))
        assert not await answers(running.address, Tls(ca.file, server_name="memory.example.com"))
        assert not await answers(running.address, Tls())
        async with grpc.aio.insecure_channel(running.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await scratch_service_pb2_grpc.ScratchServiceStub(channel).ProbeThing(pb.ProbeThingRequest(), timeout=3)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_when_the_certificate_has_another_name_then_server_name_says_which(ca: Authority) -> None:
    async with run_scratch(tls=TlsSettings(*ca.issue("server", hosts=("memory.example.com",)))) as running:
        assert not await answers(running.address, Tls(ca.file))
        assert await answers(running.address, Tls(ca.file, server_name="memory.example.com"))


async def test_tls_when_the_servers_certificate_has_ended_then_clients_leave(ca: Authority) -> None:
    async with run_scratch(tls=TlsSettings(*ca.issue("server", ends=timedelta(days=-1)))) as running:
        assert not await answers(running.address, Tls(ca.file))


async def test_mutual_tls_when_the_client_shows_none_or_a_wrong_one_then_it_is_not_served(
    ca: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    async with run_scratch(tls=TlsSettings(*ca.issue("server"), ca.file)) as running:
        assert await answers(running.address, Tls(ca.file, *ca.issue("client")))
        assert not await answers(running.address, Tls(ca.file))
        assert not await answers(running.address, Tls(ca.file, *other.issue("stranger")))
        assert not await answers(running.address, Tls(ca.file, *ca.issue("late", ends=timedelta(days=-1))))
        assert lines(running, "rpc_listening")[0]["tls"] == "mutual"


async def test_tls_when_the_files_are_replaced_then_newcomers_see_the_new_one_without_a_restart(ca: Authority) -> None:
    files = ca.issue("server")
    async with run_scratch(tls=TlsSettings(*files)) as running, stub(running.address, Tls(ca.file)) as kept:
        await kept.ProbeThing(pb.ProbeThingRequest())
        before = serial(read(files[0]))
        assert shown(running.address) == before
        ca.issue("server")
        after = serial(read(files[0]))
        assert after != before
        await eventually(lambda: shown(running.address) == after, 10)
        assert await answers(running.address, Tls(ca.file))
        await kept.ProbeThing(pb.ProbeThingRequest())  # who was connected stays


async def test_tls_when_a_renewal_is_broken_then_the_old_one_is_shown_and_the_log_says_so_once(ca: Authority) -> None:
    files = ca.issue("server")
    before = serial(read(files[0]))
    async with run_scratch(tls=TlsSettings(*files)) as running:
        key = read(files[1])
        write(files[1], read(ca.issue("else")[1]))

        def said() -> bool:
            assert shown(running.address) == before
            return bool(lines(running, "certificate"))

        await eventually(said, 10)
        assert shown(running.address) == before
        (line,) = lines(running, "certificate")
        assert "server.tls.key_file" in line["note"]
        assert line["level"] == "warning"
        write(files[1], key)
        assert await answers(running.address, Tls(ca.file))


async def test_mutual_tls_when_the_authority_is_replaced_then_only_its_clients_are_served(
    ca: Authority, tmp_path: Path
) -> None:
    new = Authority(tmp_path, "new")
    trusted = str(tmp_path / "trusted.pem")
    write(trusted, read(ca.file))
    old_client, new_client = Tls(ca.file, *ca.issue("old")), Tls(ca.file, *new.issue("newer"))
    async with run_scratch(tls=TlsSettings(*ca.issue("server"), trusted)) as running:
        assert await answers(running.address, old_client)
        write(trusted, read(new.file))
        async with asyncio.timeout(10):
            while not await answers(running.address, new_client):  # noqa: ASYNC110  # files set no event
                await asyncio.sleep(0.1)
        assert not await answers(running.address, old_client)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_tls_when_the_client_speaks_an_old_version_then_it_is_refused(
    ca: Authority, version: ssl.TLSVersion
) -> None:
    def handshake(address: str, most: ssl.TLSVersion) -> str | None:
        host, port = address.rsplit(":", 1)
        context = ssl.create_default_context(cafile=ca.file)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.set_alpn_protocols(["h2"])
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = most
        with (
            socket.create_connection((host, int(port)), timeout=3) as line,
            context.wrap_socket(line, server_hostname="localhost") as made,
        ):
            return made.version()

    async with run_scratch(tls=TlsSettings(*ca.issue("server"))) as running:
        assert handshake(running.address, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        with pytest.warns(DeprecationWarning, match="TLSv1"), pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(running.address, version)


async def test_tls_when_a_file_is_wrong_then_the_start_is_refused_naming_the_setting(
    ca: Authority, tmp_path: Path
) -> None:
    cert, key = ca.issue("server")
    junk, hollow = str(tmp_path / "junk"), str(tmp_path / "hollow")
    write(junk, b"no PEM")
    write(hollow, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for settings, says in (
        (TlsSettings(cert), r"server\.tls\.key_file"),
        (TlsSettings(key_file=key), r"server\.tls\.cert_file"),
        (TlsSettings(client_ca_file=ca.file), r"server\.tls\.cert_file"),
        (TlsSettings("/nowhere", key), r"server\.tls\.cert_file: cannot read /nowhere"),
        (TlsSettings(cert, "/nowhere"), r"server\.tls\.key_file: cannot read /nowhere"),
        (TlsSettings(junk, key), r"server\.tls\.cert_file: .*junk is not PEM"),
        (TlsSettings(hollow, key), r"server\.tls\.cert_file"),
        (TlsSettings(cert, ca.issue("else")[1]), r"server\.tls\.key_file: .* is not the key of"),
        (TlsSettings(cert, key, junk), r"server\.tls\.client_ca_file"),
        (TlsSettings(cert, key, hollow), r"server\.tls\.client_ca_file"),
    ):
        with pytest.raises(SettingsError, match=says):
            async with run_scratch(tls=settings):
                pass
