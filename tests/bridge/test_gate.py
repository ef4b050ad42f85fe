from __future__ import annotations

import asyncio
import re

import pytest

from memoryos.settings import BridgeSettings, Settings, SettingsError
from memoryos_bridge.gate import host_name
from memoryos_bridge.run import refuse_open
from tests.bridge.conftest import run_bridge, run_system
from tests.scratch.serve import serve_scratch


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:99", "[::1]", "[::1]:8080", "my.name"]
)
async def test_host_when_auth_is_off_and_the_name_is_ours_then_answered(host: str) -> None:
    async with run_system(bridge={"allowed_hosts": ("My.Name",)}) as system:
        assert (await system.http.get("/health", headers={"host": host})).status_code == 200


async def test_host_when_auth_is_off_and_the_name_is_foreign_then_403_for_every_route() -> None:
    async with run_system() as system:
        for path in ("/health", "/v1/scratch/things", "/docs", "/metrics", "/nothing"):
            for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::2]", ""):
                answer = await system.http.get(path, headers={"host": host})
                assert answer.status_code == 403, (path, host)
                assert answer.json()["error"]["code"] == "host_not_allowed"


async def test_host_when_auth_is_on_then_any_name_is_answered() -> None:
    async with run_system(auth_enabled=True, admin_key="the-admin-key") as system:
        assert (await system.http.get("/health", headers={"host": "evil.example"})).status_code == 200
        assert (await system.http.get("/v1/scratch/things", headers={"host": "evil.example"})).status_code == 401


async def test_host_when_the_server_cannot_be_asked_then_only_public_routes_are_answered() -> None:
    async with run_bridge("127.0.0.1:1") as bridge:
        headers = {"host": "pod.example"}
        assert (await bridge.client.get("/health/live", headers=headers)).status_code == 200
        answer = await bridge.client.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_unavailable")


async def test_listen_when_open_to_other_machines_without_auth_then_nothing_is_served() -> None:
    async with run_system(bridge={"listen": "0.0.0.0:0"}) as system:
        for host in ("localhost", "evil.example"):
            answer = await system.http.get("/health", headers={"host": host})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
    async with run_system(bridge={"listen": "0.0.0.0:0"}, auth_enabled=True, admin_key="the-admin-key") as system:
        assert (await system.http.get("/health")).status_code == 200


OPEN = ("0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080", "memory.example.com:8080", "localhost.example.com:8080")


@pytest.mark.parametrize("listen", OPEN)
async def test_start_when_any_open_address_is_named_then_refused_unless_insecure_or_auth(listen: str) -> None:
    async with serve_scratch() as address:
        bridge = BridgeSettings(listen=listen, server=address)
        with pytest.raises(SettingsError, match=rf"bridge\.listen {re.escape(listen)} .*insecure"):
            await asyncio.to_thread(refuse_open, Settings(bridge=bridge))
        await asyncio.to_thread(refuse_open, Settings(bridge=bridge, insecure=True))
    async with serve_scratch(auth_enabled=True, admin_key="a") as address:
        await asyncio.to_thread(refuse_open, Settings(bridge=BridgeSettings(listen=listen, server=address)))
    # A server that cannot be asked yet is asked again by the gate.
    await asyncio.to_thread(refuse_open, Settings(bridge=BridgeSettings(listen=listen, server="127.0.0.1:1")))


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "[::1]:8080", "localhost:8080"])
async def test_start_when_the_address_is_this_machines_then_the_server_is_not_even_asked(listen: str) -> None:
    refuse_open(Settings(bridge=BridgeSettings(listen=listen, server="127.0.0.1:1")))


@pytest.mark.parametrize("listen", ["unix:/run/bridge.sock", ":8080", "127.0.0.1", "127.0.0.1:99999"])
async def test_start_when_the_address_is_no_host_and_port_then_refused_by_name(listen: str) -> None:
    with pytest.raises(SettingsError, match=r"bridge\.listen"):
        refuse_open(Settings(bridge=BridgeSettings(listen=listen)))


def test_host_name_when_it_has_a_port_then_without() -> None:
    assert [host_name(v) for v in ("A:1", "[::1]:2", "[::1]", "")] == ["a", "[::1]", "[::1]", ""]


async def test_cors_when_not_configured_then_no_header_and_preflight_is_405() -> None:
    async with run_system() as system:
        answer = await system.http.get("/health", headers={"origin": "https://app.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
        assert (await system.http.options("/v1/scratch/things", headers=preflight)).status_code == 405


async def test_cors_when_configured_then_only_that_origin_reads_answers_and_errors() -> None:
    async with run_system(bridge={"cors_origins": ("https://app.example",)}) as system:
        ours = {"origin": "https://app.example"}
        for path, status in (("/health", 200), ("/nothing", 404)):
            answer = await system.http.get(path, headers=ours)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert answer.headers["vary"] == "Origin"
            answer = await system.http.get(path, headers={"origin": "https://evil.example"})
            assert "access-control-allow-origin" not in answer.headers
        asked = ours | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        answer = await system.http.options("/v1/scratch/things", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-headers"] == "authorization"
        answer = await system.http.options("/v1/scratch/things", headers=asked | {"origin": "https://evil.example"})
        assert answer.status_code == 405
