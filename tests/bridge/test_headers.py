from __future__ import annotations

import pytest
from starlette.types import Message, Receive, Scope, Send

from memoryos import tracing
from memoryos.addresses import networks
from memoryos.settings import LogSettings, SettingsError
from memoryos_bridge import logs
from memoryos_bridge.boundary import Boundary
from memoryos_bridge.exchange import Exchange
from memoryos_bridge.headers import Forwarding, percent_utf8, request_id
from memoryos_bridge.metrics import Metrics
from tests.bridge.conftest import run_system


def exchange(*headers: tuple[str, str | bytes], client: str | None = "10.0.0.9") -> Exchange:
    pairs = [(k.encode(), v if isinstance(v, bytes) else v.encode("latin-1")) for k, v in headers]
    scope = {"type": "http", "method": "GET", "headers": pairs, "client": (client, 1) if client else None}

    async def nothing(*_: object) -> None: ...

    made = Exchange(scope, nothing, nothing)  # type: ignore[arg-type]  # neither is called
    made.request_id = "r"
    return made


def test_metadata_when_a_client_forges_ours_then_none_of_it_passes() -> None:
    forged = [
        ("memoryos-client-address", "1.1.1.1"),
        ("memoryos-bridge-secret", "guess"),
        ("x-forwarded-for", "1.1.1.1"),
        ("memoryos-status", "degraded"),
        ("grpc-timeout", "1S"),
        ("x-real-ip", "1.1.1.1"),
    ]
    assert Forwarding("", []).metadata(exchange(*forged)) == (("x-request-id", "r"), ("memoryos-quiet", "1"))
    assert dict(Forwarding("s3", []).metadata(exchange(*forged))) == {
        "x-request-id": "r",
        "memoryos-quiet": "1",
        "memoryos-client-address": "10.0.0.9",
        "memoryos-bridge-secret": "s3",
    }


def test_metadata_when_headers_name_caller_tenant_and_user_then_they_pass() -> None:
    made = dict(
        Forwarding("", []).metadata(
            exchange(("authorization", "Bearer k"), ("x-tenant-id", "t"), ("x-user-id", "Zoë %C3%A4".encode()))
        )
    )
    assert made == {
        "x-request-id": "r",
        "memoryos-quiet": "1",
        "authorization": "Bearer k",
        "x-tenant-id": "t",
        "x-user-id": "Zo%C3%AB%20%C3%A4",
    }


def test_metadata_when_the_key_is_not_ascii_then_the_request_has_none() -> None:
    assert "authorization" not in dict(Forwarding("", []).metadata(exchange(("authorization", "Bearer ü"))))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.9", "1.1.1.1", "10.0.0.9"),
        ("10.1.0.9", "1.1.1.1", "1.1.1.1"),
        ("10.1.0.9", "6.6.6.6, 1.1.1.1, 10.1.0.3", "1.1.1.1"),
        ("10.1.0.9", "6.6.6.6, junk, 10.1.0.3", "10.1.0.3"),
        ("10.1.0.9", "1.1.1.1:4711", "1.1.1.1"),
        ("10.1.0.9", "[2001:db8::1]:80", "2001:db8::1"),
        ("10.1.0.9", "2001:db8::1", "2001:db8::1"),
        ("10.1.0.9", "", "10.1.0.9"),
        ("::ffff:10.1.0.9", "::ffff:1.1.1.1", "1.1.1.1"),
    ],
)
@pytest.mark.parametrize("network", ["10.1.0.0/16", "10.1.2.3/16", "::ffff:10.1.0.0/112", "::ffff:a01:203/112"])
def test_client_address_when_a_proxy_is_trusted_then_only_its_word_counts(
    network: str, peer: str, forwarded: str, address: str
) -> None:
    made = Forwarding("s", [network, "2001:db8:9::/48"])
    assert made.client_address(exchange(("x-forwarded-for", forwarded), client=peer)) == address


def test_trusted_proxy_when_malformed_then_the_setting_is_named() -> None:
    with pytest.raises(SettingsError, match=r"bridge\.trusted_proxies"):
        Forwarding("", ["not an address"])


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:0:0/95", "::fffe:0:0/95"),
        ("::/0", "::/0"),
        ("10.0.0.1/8", "10.0.0.0/8"),
    ],
)
def test_networks_when_written_then_ipv4_ones_are_such(text: str, network: str) -> None:
    assert [str(one) for one in networks([text], "a.setting")] == [network]


@pytest.mark.parametrize("given", ["a" * 129, "a b", "ü", "a\tb", ""])
def test_request_id_when_malformed_then_replaced(given: str) -> None:
    made = request_id(exchange(("x-request-id", given)))
    assert made != given
    assert len(made) == 32


def test_percent_when_text_is_not_ascii_then_utf8_is_encoded() -> None:
    assert percent_utf8("s-1") == "s-1"
    assert percent_utf8("a ä\r\n") == "a%20%C3%A4%0D%0A"


async def test_header_when_far_too_long_then_it_is_named_and_a_key_is_none() -> None:
    async with run_system() as system:
        for name in ("X-User-ID", "X-Tenant-ID"):
            answer = await system.http.get("/v1/models", headers={name: "x" * 20_000})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    key = "Bearer " + "k" * 20_000
    assert Forwarding("", []).metadata(exchange(("authorization", key))) == (
        ("x-request-id", "r"),
        ("memoryos-quiet", "1"),
    )
    longest = "%F0%9F%90%9D" * 256
    assert ("x-user-id", longest) in Forwarding("", []).metadata(exchange(("x-user-id", longest)))


async def test_server_when_the_secret_is_shared_then_it_believes_the_bridges_address() -> None:
    async with run_system(bridge={"secret": "s", "trusted_proxies": ("127.0.0.1",)}, bridge_secret="s") as system:
        await system.http.post("/v1/scratch/things", json={"name": "a"}, headers={"x-forwarded-for": "7.7.7.7"})
        assert "7.7.7.7" in [event.address for event in system.scratch.audit_log.events]


async def test_user_when_the_header_is_percent_encoded_then_the_server_decodes_it() -> None:
    async with run_system() as system:
        made = await system.http.post(
            "/v1/scratch/things", json={"name": "a"}, headers={b"x-user-id": "Zoë %2B".encode()}
        )
        assert made.json()["owner"] == "Zoë +"


async def test_header_when_given_twice_differently_or_malformed_then_400() -> None:
    async with run_system() as system:
        twice = [("x-user-id", "a"), ("x-user-id", "b")]
        for headers in (twice, [(b"x-tenant-id", "ü".encode())], [("x-tenant-id", "a b")]):
            answer = await system.http.get("/v1/scratch/things", headers=headers)
            assert answer.status_code == 400, headers
            assert answer.json()["error"]["param"].lower() in ("x-user-id", "x-tenant-id")


async def test_trace_when_a_pipelined_request_names_none_then_it_is_not_that_of_the_one_before() -> None:
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hop = tracing.current()
        seen.append(hop.parent if hop else None)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None: ...

    boundary = Boundary(app, metrics=Metrics(), log=logs.make(LogSettings()))
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    # One after the other on one connection, the second begins in what the first has left behind.
    for headers in ([(b"traceparent", parent.encode())], [], [(b"traceparent", b"malformed")]):
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "headers": headers,
        }
        await boundary(scope, receive, send)
    assert seen == [parent, None, None]
