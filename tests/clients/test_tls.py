"""TLS on both ports under `memoryos up`, and all that speaks with them: clients, import, doctor."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from memoryos import AsyncClient, Client, Tls
from memoryos.errors import MemoryOSError
from memoryos.settings import SettingsError
from tests.certificates import Authority
from tests.clients.supervised import Up


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def up(tmp_path: Path, ca: Authority) -> Iterator[Up]:
    """With TLS on both ports; the server also asks for certificates, of which the bridge has one."""
    made = Up(tmp_path / "home")
    names = ("CERT_FILE", "KEY_FILE", "CLIENT_CA_FILE")
    for setting, files in (
        ("SERVER__TLS", (*ca.issue("server"), ca.file)),
        ("BRIDGE__TLS", ca.issue("bridge")),
        ("BRIDGE__SERVER_TLS", ca.issue("link")),
    ):
        made.system.env |= {f"MEMORYOS_{setting}__{n}": f for n, f in zip(names, files, strict=False)}
    made.system.env["MEMORYOS_BRIDGE__SERVER_TLS__CA_FILE"] = ca.file
    made.system.home.mkdir()
    yield made
    made.stop()


def doctor(up: Up, **env: str) -> dict[str, dict[str, str]]:
    done = up.system.cli("doctor", "--json", check=False, **env)
    return {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_up_when_both_ports_have_tls_then_it_is_ready_and_clients_import_and_doctor_work(
    up: Up, ca: Authority, tmp_path: Path
) -> None:
    up.start()
    up.ready()
    url = f"https://{up.system.http}"
    assert url in up.text()
    trusting = ssl.create_default_context(cafile=ca.file)
    with urllib.request.urlopen(f"{url}/health/ready", timeout=20, context=trusting) as answer:  # noqa: S310
        assert answer.status == 200

    tls = Tls(ca.file, *ca.issue("client"))
    with Client(up.system.grpc, user_id="ann", tls=tls) as client:
        client.add("I take my coffee black.")
        assert client.retrieve("coffee").episodes[0].content == "I take my coffee black."

    async def asynchronously() -> int:
        async with AsyncClient(up.system.grpc, user_id="ann", tls=tls) as made:
            return len((await made.retrieve("coffee")).episodes)

    assert asyncio.run(asynchronously()) == 1
    with Client(up.system.grpc, tls=Tls(ca.file), timeout=3) as nobody, pytest.raises(MemoryOSError):
        nobody.health()

    turns = tmp_path / "turns.jsonl"
    turns.write_text(json.dumps({"user_id": "ann", "role": "user", "content": "I moved to Porto."}) + "\n")
    assert json.loads(up.system.cli("import", str(turns), "--json").stdout)["turns"] == 1

    found = doctor(up)
    assert found["bridge.listen"]["text"].endswith("MemoryOS is running")
    for name in ("server.tls", "bridge.tls", "bridge.server_tls"):
        assert found[name]["state"] == "warning"  # it lasts a day only
        assert "valid until" in found[name]["text"]


def test_up_when_the_bridge_asks_for_certificates_then_it_is_ready_all_the_same(up: Up, ca: Authority) -> None:
    up.system.env["MEMORYOS_BRIDGE__TLS__CLIENT_CA_FILE"] = ca.file
    up.start()
    up.ready()
    assert doctor(up)["bridge.listen"]["text"].endswith("MemoryOS is running")


def test_doctor_when_certificates_are_broken_or_ended_then_it_names_them(up: Up, ca: Authority) -> None:
    cert, key = ca.issue("old", ends=timedelta(hours=-1))
    long, long_key = ca.issue("long", ends=timedelta(days=90))
    found = doctor(
        up,
        MEMORYOS_SERVER__TLS__CERT_FILE=cert,
        MEMORYOS_SERVER__TLS__KEY_FILE=key,
        MEMORYOS_BRIDGE__TLS__KEY_FILE="/nowhere",
        MEMORYOS_BRIDGE__SERVER_TLS__CERT_FILE=long,
        MEMORYOS_BRIDGE__SERVER_TLS__KEY_FILE=long_key,
    )
    assert found["server.tls"]["state"] == "broken"
    assert "ended" in found["server.tls"]["text"]
    assert found["bridge.tls"]["state"] == "broken"
    assert "bridge.tls.key_file" in found["bridge.tls"]["text"]
    assert found["bridge.server_tls"]["state"] == "ok"


def test_client_when_a_file_of_tls_is_wrong_then_it_says_which(ca: Authority) -> None:
    cert, _ = ca.issue("client")
    for tls, says in (
        (Tls("/nowhere"), r"tls\.ca_file: cannot read /nowhere"),
        (Tls(ca.file, cert), r"tls\.key_file must be set"),
        (Tls(ca.file, cert, ca.issue("else")[1]), r"tls\.key_file: .* is not the key of"),
    ):
        with pytest.raises(SettingsError, match=says):
            Client(tls=tls)
