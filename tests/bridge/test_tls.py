"""TLS of the bridge and between bridge and server: real processes, real certificates."""

from __future__ import annotations

import asyncio
import json
import ssl
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from memoryos.settings import BridgeSettings, ServerSettings, ServerTlsSettings, Settings, TlsSettings
from memoryos.tls import towards_server
from memoryos_bridge.app import target
from tests.bridge.test_process import process
from tests.certificates import Authority, read, serial
from tests.scratch.serve import serve_scratch
from tests.system import free_port


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def trusting(ca: Authority, *shown: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca.file)
    if shown:
        context.load_cert_chain(*shown)
    return context


async def got(port: int, context: ssl.SSLContext, path: str = "/health/status", host: str = "") -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, verify=context) as client:
        return await client.get(f"https://127.0.0.1:{port}{path}", headers={"Host": host} if host else None)


async def served(port: int, context: ssl.SSLContext, status: int = 200) -> httpx.Response:
    """The answer, once the bridge listens and knows the server."""
    async with asyncio.timeout(30):
        while True:
            try:
                answer = await got(port, context)
            except httpx.ConnectError as error:
                if "SSL" in str(error):
                    raise
            else:
                if answer.status_code == status:
                    return answer
            await asyncio.sleep(0.1)


def shown(port: int) -> int:
    return serial(ssl.get_server_certificate(("127.0.0.1", port), timeout=3))


def listening(port: int, tls: str, *files: str) -> dict[str, str]:
    names = ("CERT_FILE", "KEY_FILE", "CLIENT_CA_FILE")
    return {
        "MEMORYOS_BRIDGE__LISTEN": f"127.0.0.1:{port}",
        **{f"{tls}__{name}": file for name, file in zip(names, files, strict=False)},
    }


def towards(address: str, ca: Authority, *shown: str) -> dict[str, str]:
    link = {"MEMORYOS_BRIDGE__SERVER": address, "MEMORYOS_BRIDGE__SERVER_TLS__CA_FILE": ca.file}
    return link | {
        f"MEMORYOS_BRIDGE__SERVER_TLS__{n}": f for n, f in zip(("CERT_FILE", "KEY_FILE"), shown, strict=False)
    }


async def test_tls_when_both_ports_have_it_then_https_reaches_the_server_and_renewals_show(ca: Authority) -> None:
    port, files = free_port(), ca.issue("bridge")
    async with serve_scratch(tls=TlsSettings(*ca.issue("server"), ca.file)) as server:
        env = listening(port, "MEMORYOS_BRIDGE__TLS", *files) | towards(server, ca, *ca.issue("link"))
        async with process(**env, MEMORYOS_BRIDGE__ALLOWED_HOSTS="memory.example.com"):
            answer = await served(port, trusting(ca))
            assert answer.json()["mode"] == "ready"
            assert "strict-transport-security" not in answer.headers
            named = await got(port, trusting(ca), "/health", host="memory.example.com")
            assert named.headers["strict-transport-security"] == "max-age=31536000"
            other = Authority(ca.directory, "other")
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await got(port, trusting(other))
            async with httpx.AsyncClient(trust_env=False) as plain:
                with pytest.raises(httpx.TransportError):
                    await plain.get(f"http://127.0.0.1:{port}/health")
            ca.issue("bridge")
            after = serial(read(files[0]))
            async with asyncio.timeout(10):
                while await asyncio.to_thread(shown, port) != after:  # noqa: ASYNC110  # files set no event
                    await asyncio.sleep(0.1)
            assert (await got(port, trusting(ca))).status_code == 200


async def test_mutual_tls_when_the_client_shows_none_or_a_wrong_one_then_it_is_not_served(ca: Authority) -> None:
    port, other = free_port(), Authority(ca.directory, "other")
    async with serve_scratch() as server:
        env = listening(port, "MEMORYOS_BRIDGE__TLS", *ca.issue("bridge"), ca.file)
        async with process(**env, MEMORYOS_BRIDGE__SERVER=server):
            assert (await served(port, trusting(ca, *ca.issue("client")))).json()["mode"] == "ready"
            for wrong in ((), other.issue("stranger"), ca.issue("late", ends=timedelta(days=-1))):
                with pytest.raises(httpx.TransportError):
                    await got(port, trusting(ca, *wrong))


async def test_link_when_the_server_is_not_the_one_trusted_then_503_and_nothing_is_sent(ca: Authority) -> None:
    port, other = free_port(), Authority(ca.directory, "other")
    async with serve_scratch(tls=TlsSettings(*other.issue("server"))) as server:
        env = listening(port, "MEMORYOS_BRIDGE__TLS", *ca.issue("bridge")) | towards(server, ca)
        async with process(**env):
            answer = await served(port, trusting(ca), 503)
    assert answer.json()["mode"] == "not_ready"


async def test_link_when_the_bridges_own_certificate_is_renewed_then_it_is_shown_without_a_restart(
    ca: Authority,
) -> None:
    port, other = free_port(), Authority(ca.directory, "other")
    async with serve_scratch(tls=TlsSettings(*ca.issue("server"), other.file)) as server:
        env = listening(port, "MEMORYOS_BRIDGE__TLS", *ca.issue("bridge")) | towards(server, ca, *ca.issue("link"))
        async with process(**env):
            await served(port, trusting(ca), 503)
            other.issue("link")
            assert (await served(port, trusting(ca))).json()["mode"] == "ready"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MEMORYOS_BRIDGE__TLS__CERT_FILE", "bridge.tls.key_file"),
        ("MEMORYOS_BRIDGE__TLS__CLIENT_CA_FILE", "bridge.tls.cert_file"),
        ("MEMORYOS_BRIDGE__SERVER_TLS__CA_FILE", "bridge.server_tls.ca_file: cannot read /nowhere"),
        ("MEMORYOS_BRIDGE__SERVER_TLS__KEY_FILE", "bridge.server_tls.cert_file"),
    ],
)
async def test_start_when_a_file_is_wrong_then_it_is_refused_naming_the_setting(name: str, says: str) -> None:
    async with process(**{name: "/nowhere", "MEMORYOS_BRIDGE__LISTEN": f"127.0.0.1:{free_port()}"}) as running:
        _, err = await asyncio.wait_for(running.communicate(), 30)
    assert running.returncode == 2
    assert says in err.decode()


async def test_start_when_it_listens_beyond_loopback_without_tls_then_it_warns_once() -> None:
    async with serve_scratch(auth_enabled=True, admin_key="a") as server:
        port = free_port()
        async with process(MEMORYOS_BRIDGE__LISTEN=f"0.0.0.0:{port}", MEMORYOS_BRIDGE__SERVER=server) as running:
            async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(30):
                while True:
                    try:
                        assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.1)
            running.terminate()
            _, err = await asyncio.wait_for(running.communicate(), 30)
    events = [json.loads(line) for line in err.decode().splitlines()]
    (warning,) = [event for event in events if event["event"] == "listening_in_the_clear"]
    assert warning["level"] == "warning"


def test_link_when_settings_name_own_server_with_tls_then_it_follows_and_another_server_does_not() -> None:
    tls = TlsSettings("c", "k")
    own = Settings(server=ServerSettings(tls=tls))
    assert towards_server(own) is not None
    assert towards_server(Settings()) is None
    assert towards_server(Settings(server=ServerSettings(tls=tls), bridge=BridgeSettings(server="a:1"))) is None
    link = ServerTlsSettings(enabled=True)
    assert towards_server(Settings(bridge=BridgeSettings(server="a:1", server_tls=link))) is not None


def test_target_when_the_server_listens_on_a_unix_socket_then_the_bridge_goes_there() -> None:
    assert target(Settings(server=ServerSettings(listen="unix:/run/m.sock"))) == "unix:/run/m.sock"
