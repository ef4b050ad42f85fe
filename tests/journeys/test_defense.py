"""The defense through server and bridge: who is stopped, who never is, and what administrators see and change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from memoryos.v1 import memory_service_pb2, memory_service_pb2_grpc
from tests.system import System, until

ADMIN = "admin-key-of-a-test-0123456789"
AS_ADMIN = {"Authorization": f"Bearer {ADMIN}"}
ENV = {
    "MEMORYOS_AUTH__ENABLED": "true",
    "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
    # Tests say by this header which address they come from.
    "MEMORYOS_BRIDGE__TRUSTED_PROXIES": "127.0.0.1,192.0.2.200",
    "MEMORYOS_DEFENSE__AUTH_FAILURES": "5",
    "MEMORYOS_DEFENSE__UNKNOWN_ROUTES": "6",
    "MEMORYOS_DEFENSE__ADDRESS_BURST": "15",
    "MEMORYOS_DEFENSE__ADDRESS_PER_SECOND": "0.01",
    "MEMORYOS_DEFENSE__FLOODS": "5",
    "MEMORYOS_DEFENSE__KEY_BURST": "150",
    "MEMORYOS_DEFENSE__KEY_PER_SECOND": "1",
    "MEMORYOS_DEFENSE__BAN_SECONDS": "600",
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("defense"), ENV) as running:
        yield running


def ask(system: System, address: str, key: str | None, path: str = "/v1/usage") -> tuple[int, Any, Any]:
    """A request of an address behind the trusted proxy."""
    headers = {"X-Forwarded-For": address} | ({"Authorization": f"Bearer {key}"} if key else {})
    return system.get(path, headers)


def admin(system: System, verb: str, path: str, body: Any = None) -> Any:
    status, answer, _ = system.call(verb, f"/v1/admin/defense/{path}", body, AS_ADMIN)
    assert status == 200, answer
    return answer


def bans(system: System) -> dict[str, Any]:
    return {ban["ip"]: ban for ban in admin(system, "GET", "bans")["bans"]}


def attack(system: System, address: str) -> None:
    for _ in range(5):
        assert ask(system, address, "no-such-key")[0] == 401


def test_bans_when_bad_keys_come_then_everything_but_public_routes_is_refused_until_somebody_lifts_it(
    system: System,
) -> None:
    before = admin(system, "GET", "stats")
    attack(system, "203.0.113.1")
    status, answer, headers = ask(system, "203.0.113.1", ADMIN)
    assert (status, answer["error"]["type"], answer["error"]["code"]) == (403, "Forbidden", "ip_banned")
    assert 590 <= int(headers["Retry-After"]) <= 600
    assert headers["X-Request-ID"]
    assert ask(system, "203.0.113.1", ADMIN, "/no/such/route")[0] == 403
    assert ask(system, "203.0.113.1", None, "/health")[0] == 200
    assert ask(system, "203.0.113.2", ADMIN)[0] == 200

    ban = bans(system)["203.0.113.1"]
    assert (ban["reason"], ban["offence"]) == ("auth_failures", 1)
    assert ban["expires_at"] > ban["banned_at"]
    stats = admin(system, "GET", "stats")
    # Five bad keys, two refused, /health, one answered; the question for bans and that for the stats themselves.
    assert stats["total_requests"] - before["total_requests"] == 11
    assert stats["blocked_requests"] - before["blocked_requests"] == 2
    assert stats["total_bans"] == stats["temp_bans"] + stats["permanent_bans"]
    assert stats["temp_bans"] - before["temp_bans"] == 1

    unbanned = admin(system, "DELETE", "unban/203.0.113.1")
    assert unbanned == {"message": "IP 203.0.113.1 unbanned"}
    assert ask(system, "203.0.113.1", ADMIN)[0] == 200
    assert admin(system, "DELETE", "unban/198.51.100.250") == {"message": "IP 198.51.100.250 unbanned"}


def test_bans_when_a_place_comes_again_then_permanent_without_an_end_until_it_is_lifted(system: System) -> None:
    attack(system, "203.0.113.3")
    system.stop()
    # The first ban ends as soon as the server is back: its time is made short where it is set.
    system.env["MEMORYOS_DEFENSE__BAN_SECONDS"] = "0.2"
    system.start()
    try:
        admin(system, "DELETE", "unban/203.0.113.3")
        attack(system, "203.0.113.3")
        until(lambda: ask(system, "203.0.113.3", ADMIN)[0] == 200)
        attack(system, "203.0.113.3")
        status, answer, headers = ask(system, "203.0.113.3", ADMIN)
        assert (status, answer["error"]["code"], headers["Retry-After"]) == (403, "ip_banned", None)
        assert bans(system)["203.0.113.3"]["expires_at"] is None
        assert admin(system, "GET", "stats")["permanent_bans"] == 1
        admin(system, "DELETE", "unban/198.51.100.251")  # a change waits until all that came before it is written
        system.kill()
        system.start()
        assert ask(system, "203.0.113.3", ADMIN)[0] == 403
        admin(system, "DELETE", "unban/203.0.113.3")
        assert ask(system, "203.0.113.3", ADMIN)[0] == 200
    finally:
        system.stop()
        system.env["MEMORYOS_DEFENSE__BAN_SECONDS"] = "600"
        system.start()


@pytest.mark.parametrize(
    ("forms", "place"),
    [
        (("203.0.113.20", "::ffff:203.0.113.20", "::ffff:cb00:7114", "203.0.113.20:4711"), "203.0.113.20"),
        (("2001:db8:1:2::1", "2001:DB8:0001:0002:ffff::2", "[2001:db8:1:2::3]:443"), "2001:db8:1:2::/64"),
    ],
)
def test_bans_when_an_address_is_written_otherwise_then_it_is_the_same_one(
    system: System, forms: tuple[str, ...], place: str
) -> None:
    for number in range(5):
        assert ask(system, forms[number % len(forms)], "no-such-key")[0] == 401
    assert [ask(system, form, ADMIN)[0] for form in forms] == [403] * len(forms)
    assert place in bans(system)
    bare = forms[1]
    assert admin(system, "DELETE", f"unban/{bare}") == {"message": f"IP {bare} unbanned"}
    assert ask(system, forms[0], ADMIN)[0] == 200


def test_forwarded_when_the_peer_is_no_trusted_proxy_then_what_it_says_is_ignored(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    untrusting = {**ENV, "MEMORYOS_BRIDGE__TRUSTED_PROXIES": ""}
    with System(tmp_path_factory.mktemp("untrusting"), untrusting) as system:
        for number in range(40):
            # Whoever could choose his address would get others banned, and never be banned himself.
            assert ask(system, f"203.0.113.{number}", "no-such-key")[0] == 401
        assert bans(system) == {}  # it was loopback, which is never banned
        assert ask(system, "203.0.113.9", ADMIN)[0] == 200


def test_forwarded_when_a_client_adds_addresses_then_the_nearest_that_is_no_proxy_counts(system: System) -> None:
    for number in range(5):
        spoofed = f"10.0.0.{number}, 203.0.113.30, 192.0.2.200"
        assert ask(system, spoofed, "no-such-key")[0] == 401
    assert "203.0.113.30" in bans(system)
    assert not any(ip.startswith("10.") for ip in bans(system))
    for _ in range(10):
        assert ask(system, "192.0.2.200", "no-such-key")[0] == 401  # a trusted proxy itself
    assert "192.0.2.200" not in bans(system)


def test_limits_when_an_address_sends_no_key_then_told_when_to_come_again_and_in_the_end_banned(
    system: System,
) -> None:
    for _ in range(15):
        assert ask(system, "203.0.113.40", None)[0] == 401
    status, answer, headers = ask(system, "203.0.113.40", None)
    assert (status, answer["error"]["code"]) == (429, "too_many_requests")
    assert 1 <= int(headers["Retry-After"]) <= 100
    shown = {name: headers[f"RateLimit-{name}"] for name in ("Limit", "Remaining")}
    assert shown == {"Limit": "15", "Remaining": "0"}
    assert int(headers["RateLimit-Reset"]) >= int(headers["Retry-After"])
    for _ in range(10):  # whoever shares the address and has a key
        assert ask(system, "203.0.113.40", ADMIN)[0] == 200
    for _ in range(4):
        assert ask(system, "203.0.113.40", None)[0] == 429
    assert ask(system, "203.0.113.40", None)[0] == 403
    assert bans(system)["203.0.113.40"]["reason"] == "flood"


def test_scraping_when_many_routes_do_not_exist_then_banned_and_with_a_valid_key_not(system: System) -> None:
    for number in range(30):
        assert ask(system, "203.0.113.50", ADMIN, f"/with/a/key/{number}")[0] == 404
    for _ in range(12):
        assert ask(system, "203.0.113.51", None, "/the/same")[0] == 404
    for number in range(6):
        assert ask(system, "203.0.113.52", None, f"/wp-admin/{number}.php")[0] == 404
    assert ask(system, "203.0.113.52", None, "/wp-admin")[0] == 403
    found = bans(system)
    assert found["203.0.113.52"]["reason"] == "scraping"
    assert "203.0.113.50" not in found


def test_key_when_it_makes_too_many_calls_then_it_is_limited_wherever_it_comes_from_and_nobody_is_banned(
    system: System,
) -> None:
    made = json.loads(system.cli("keys", "create", "--permissions", "chat", "--json").stdout)
    seen = [ask(system, f"203.0.113.{60 + number % 5}", made["api_key"]) for number in range(200)]
    statuses = [status for status, _, _ in seen]
    assert set(statuses) == {200, 429}
    answered = next(headers for status, _, headers in seen if status == 200)
    refused = next(headers for status, _, headers in seen if status == 429)
    assert (answered["RateLimit-Limit"], answered["RateLimit-Remaining"]) == ("150", "149")
    assert (refused["RateLimit-Remaining"], refused["Retry-After"]) == ("0", "1")
    assert not any(ip.startswith("203.0.113.6") for ip in bans(system))
    tail = until(
        lambda: [
            line
            for line in system.cli("audit", "tail", "--limit", "1000").stdout.splitlines()
            if "defense.limit" in line
        ]
    )
    assert made["id"] in tail[0]
    metrics = system.get("/metrics")[1]
    assert 'memoryos_refused_total{limit="key"}' in metrics
    assert "203.0.113" not in metrics


def test_key_when_its_calls_are_not_allowed_then_they_count_against_its_limit_too(system: System) -> None:
    made = json.loads(system.cli("keys", "create", "--permissions", "chat", "--json").stdout)
    seen = [ask(system, "203.0.113.66", made["api_key"], "/v1/admin/keys")[0] for _ in range(200)]
    assert (seen[0], seen[149]) == (403, 403)
    assert 429 in seen[150:]
    assert "203.0.113.66" not in bans(system)


def test_key_when_it_is_revoked_between_two_calls_then_the_second_is_refused(system: System) -> None:
    made = json.loads(system.cli("keys", "create", "--permissions", "chat", "--json").stdout)
    assert [ask(system, "203.0.113.67", made["api_key"])[0] for _ in range(3)] == [200] * 3
    assert system.call("DELETE", f"/v1/admin/keys/{made['id']}", None, AS_ADMIN)[0] == 200
    assert [ask(system, "203.0.113.67", made["api_key"])[0] for _ in range(3)] == [401] * 3


def test_whitelist_when_an_address_is_on_it_then_neither_banned_nor_limited_but_it_needs_a_key(
    system: System,
) -> None:
    attack(system, "198.51.100.9")
    assert ask(system, "198.51.100.9", ADMIN)[0] == 403
    body = {"ip": "198.51.100.0/24", "reason": "the office"}
    assert admin(system, "POST", "whitelist", body) == {"message": "IP 198.51.100.0/24 added to whitelist"}
    assert [ask(system, "198.51.100.9", "no-such-key")[0] for _ in range(30)] == [401] * 30
    assert ask(system, "198.51.100.9", ADMIN)[0] == 200
    assert "198.51.100.9" not in bans(system)
    (entry,) = [one for one in admin(system, "GET", "whitelist")["entries"] if one["ip"] == "198.51.100.0/24"]
    assert (entry["reason"], entry["added_by"]) == ("the office", "admin_key")
    removed = admin(system, "DELETE", "whitelist/198.51.100.0/24")
    assert removed == {"message": "IP 198.51.100.0/24 removed from whitelist", "ip": "198.51.100.0/24"}
    attack(system, "198.51.100.9")
    assert ask(system, "198.51.100.9", ADMIN)[0] == 403


@pytest.mark.parametrize(
    ("ip", "path"),
    [
        ("192.168.1.100", "192.168.1.100"),
        ("10.0.0.0/8", "10.0.0.0%2F8"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001%3Adb8%3A%3A1"),
    ],
)
def test_whitelist_when_an_entry_is_named_in_a_path_then_it_is_removed_once(system: System, ip: str, path: str) -> None:
    assert admin(system, "POST", "whitelist", {"ip": ip})["message"] == f"IP {ip} added to whitelist"
    size = admin(system, "GET", "stats")["whitelist_size"]
    assert admin(system, "DELETE", f"whitelist/{path}")["ip"] == ip
    assert admin(system, "GET", "stats")["whitelist_size"] == size - 1
    status, answer, _ = system.call("DELETE", f"/v1/admin/defense/whitelist/{path}", None, AS_ADMIN)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "not_found", "ip")


@pytest.mark.parametrize(
    ("verb", "path", "body", "param"),
    [
        ("POST", "whitelist", {"ip": "nonsense"}, "ip"),
        ("POST", "whitelist", {"ip": "10.0.0.1/8"}, "ip"),
        ("POST", "whitelist", {"ip": "0.0.0.0/0"}, "ip"),
        ("POST", "whitelist", {"reason": "x"}, "ip"),
        ("POST", "whitelist", {"ip": "10.0.0.1", "reason": "x" * 1001}, "reason"),
        ("DELETE", "unban/nonsense", None, "ip"),
        ("DELETE", "unban/10.0.0.0%2F8", None, "ip"),
        ("GET", "bans?page_size=0", None, "page_size"),
        ("GET", "bans?page_token=x", None, "page_token"),
    ],
)
def test_routes_when_a_field_is_bad_then_400_names_it(
    system: System, verb: str, path: str, body: Any, param: str
) -> None:
    status, answer, _ = system.call(verb, f"/v1/admin/defense/{path}", body, AS_ADMIN)
    assert (status, answer["error"]["param"]) == (400, param)


def test_routes_when_the_key_is_not_of_all_tenants_then_forbidden(system: System) -> None:
    arguments = ("keys", "create", "--permissions", "admin", "--tenant", "acme", "--json")
    key = json.loads(system.cli(*arguments).stdout)["api_key"]
    routes = (("GET", "stats"), ("GET", "bans"), ("GET", "whitelist"), ("DELETE", "unban/192.0.2.1"))
    for verb, path in (*routes, ("DELETE", "whitelist/192.0.2.1")):
        status, answer, _ = system.call(
            verb, f"/v1/admin/defense/{path}", None, {"Authorization": f"Bearer {key}", "X-Forwarded-For": "192.0.2.9"}
        )
        assert (status, answer["error"]["code"]) == (403, "permission_denied"), path


def test_administrator_when_everything_comes_from_loopback_then_he_is_never_locked_out(system: System) -> None:
    for number in range(40):
        assert system.get("/v1/usage", {"Authorization": "Bearer no-such-key"})[0] == 401
        assert system.get(f"/nothing/{number}")[0] == 404
    assert system.get("/v1/usage", AS_ADMIN)[0] == 200


def test_operator_when_he_has_no_key_then_the_command_lists_and_lifts_bans_running_and_stopped(system: System) -> None:
    attack(system, "203.0.113.70")
    attack(system, "203.0.113.71")
    listed = [json.loads(line) for line in system.cli("defense", "bans", "--json").stdout.splitlines()]
    assert {"203.0.113.70", "203.0.113.71"} <= {ban["place"] for ban in listed}
    assert system.cli("defense", "unban", "203.0.113.70").stdout == "unbanned: 203.0.113.70\n"
    assert ask(system, "203.0.113.70", ADMIN)[0] == 200
    system.cli("defense", "whitelist", "add", "172.16.0.0/12", "--reason", "ours")
    assert "172.16.0.0/12" in system.cli("defense", "whitelist").stdout
    system.stop()
    assert system.cli("defense", "unban", "203.0.113.71").stdout == "unbanned: 203.0.113.71\n"
    assert system.cli("defense", "whitelist", "remove", "172.16.0.0/12").stdout == "removed: 172.16.0.0/12\n"
    failed = system.cli("defense", "unban", "nonsense", check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    system.start()
    assert ask(system, "203.0.113.71", ADMIN)[0] == 200
    tail = system.cli("audit", "tail", "--limit", "200", "--json").stdout.splitlines()
    events = [json.loads(line) for line in tail]
    shown = {(e["event_type"], e["address"], e["actor"]) for e in events if e["event_type"].startswith("defense.")}
    assert ("defense.ban", "203.0.113.71", "defense") in shown
    assert ("defense.unban", "203.0.113.71", "operator") in shown
    assert ("defense.whitelist_remove", "172.16.0.0/12", "operator") in shown
    assert ("defense.whitelist_add", "172.16.0.0/12", "operator") in shown


async def test_grpc_when_a_method_does_not_exist_or_an_address_is_banned_then_the_status_says_so(
    system: System,
) -> None:
    told = (("memoryos-client-address", "203.0.113.80"), ("memoryos-bridge-secret", "secret-of-a-test"))
    async with grpc.aio.insecure_channel(system.grpc) as channel:
        for number in range(6):
            call: Any = channel.unary_unary(f"/no.such.Service/Method{number}")
            with pytest.raises(grpc.aio.AioRpcError) as missing:
                await call(b"", metadata=told)
            assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED
        stub: Any = memory_service_pb2_grpc.MemoryServiceStub(channel)
        metadata = (*told, ("authorization", f"Bearer {ADMIN}"), ("x-request-id", "mine"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListSessions(memory_service_pb2.ListSessionsRequest(user_id="ann"), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert ("x-request-id", "mine") in tuple(caught.value.trailing_metadata() or ())
        # Whoever does not know the secret cannot say who he is.
        wrong = (("memoryos-client-address", "203.0.113.80"), ("memoryos-bridge-secret", "guessed"), *metadata[2:])
        await stub.ListSessions(memory_service_pb2.ListSessionsRequest(user_id="ann"), metadata=wrong)


async def test_grpc_when_a_key_has_used_up_half_then_it_is_told_with_every_answer(system: System) -> None:
    made = json.loads(system.cli("keys", "create", "--permissions", "memory", "--json").stdout)
    told = (("authorization", f"Bearer {made['api_key']}"),)
    seen = []
    async with grpc.aio.insecure_channel(system.grpc) as channel:
        stub: Any = memory_service_pb2_grpc.MemoryServiceStub(channel)
        for _ in range(200):
            call = stub.ListSessions(memory_service_pb2.ListSessionsRequest(), metadata=told)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call
            trailers = dict(await call.trailing_metadata() or ())
            seen.append((await call.code(), trailers.get("ratelimit")))
    assert seen[0] == (grpc.StatusCode.OK, None)
    first = next(shown for _, shown in seen if shown)
    assert first.startswith("limit=150, remaining=74, reset=")
    assert any(code is grpc.StatusCode.OK and shown for code, shown in seen)
    code, last = next(one for one in seen if one[0] is not grpc.StatusCode.OK)
    assert (code, str(last)[:22]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "limit=150, remaining=0")


def test_defense_when_auth_is_off_then_nobody_is_bothered(tmp_path: Path) -> None:
    off = {name: value for name, value in ENV.items() if "AUTH__" not in name}
    with System(tmp_path, off) as system:
        for number in range(60):
            assert ask(system, "203.0.113.1", "no-such-key")[0] == 200
            assert ask(system, "203.0.113.1", None, f"/nothing/{number}")[0] == 404
        assert admin(system, "GET", "stats")["blocked_requests"] == 0
