"""Every RPC, called by everybody: what the table says is what happens, over gRPC and over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from memoryos_server.domain.core.caller import PERMISSIONS
from tests.any_rpc import METHODS, over_grpc, over_http
from tests.rpc.authorisation import LINES, Line
from tests.system import System

ADMIN = "the-admin-key-of-a-settings-file"
OURS, OTHERS = "north", "south"

ALLOWED, UNKNOWN, DENIED = "allowed", "unauthenticated", "denied"
_GRPC = {grpc.StatusCode.UNAUTHENTICATED: UNKNOWN, grpc.StatusCode.PERMISSION_DENIED: DENIED}
_HTTP = {401: UNKNOWN, 403: DENIED}
_counted = {"cells": 0, "calls": 0}


@dataclass(frozen=True)
class Cell:
    """One caller of one RPC.

    Attributes:
        who: Who calls, for people.
        headers: What tells so.
        expected: What becomes of it.
        more: What the request says besides.
    """

    who: str
    headers: Mapping[str, str]
    expected: str
    more: Mapping[str, Any]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    env = {
        "MEMORYOS_EMBEDDING__MODEL": "none",
        "MEMORYOS_AUTH__ENABLED": "true",
        "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
    }
    with System(tmp_path_factory.mktemp("authorisation"), env) as running:
        yield running


@pytest.fixture(scope="module")
def channel(system: System) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(system.grpc) as opened:
        yield opened


def made(system: System, user: str, *permissions: str, tenant: str = OURS, **more: Any) -> dict[str, Any]:
    """A new key."""
    body = {"user_id": user, "permissions": permissions, "tenant_id": tenant, **more}
    status, answer, _ = system.post("/v1/admin/keys", body, {"Authorization": f"Bearer {ADMIN}"})
    assert status == 200, answer
    return dict(answer)


def key(system: System, user: str, *permissions: str, **more: Any) -> dict[str, str]:
    """The header of a new key."""
    return {"Authorization": f"Bearer {made(system, user, *permissions, **more)['api_key']}"}


@pytest.fixture(scope="module")
def over(system: System) -> dict[str, dict[str, str]]:
    """Headers of keys that work no more."""
    ending = made(system, "over", "admin", expires_at=(datetime.now(UTC) + timedelta(seconds=1)).isoformat())
    revoked = made(system, "gone", "admin")
    status, answer, _ = system.call(
        "DELETE", f"/v1/admin/keys/{revoked['id']}", None, {"Authorization": f"Bearer {ADMIN}"}
    )
    assert status == 200, answer
    time.sleep(1.1)
    return {
        name: {"Authorization": f"Bearer {one['api_key']}"} for name, one in (("expired", ending), ("revoked", revoked))
    }


def permits(held: str, wanted: str) -> bool:
    """Whether one permission is, or implies, another; told here once more, apart from the server."""
    return held in (wanted, "admin") or (held == "memory" and wanted in ("memory.read", "memory.write"))


def naming(line: Line, user: str) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
    """The ways in which a request of an RPC names a user: headers, and what the body says."""
    ways: list[tuple[str, dict[str, str], dict[str, Any]]] = [("in the header", {"X-User-ID": user}, {})]
    fields = METHODS[line.rpc].descriptor.input_type.fields_by_name
    if "user_id" in fields or "chat" in fields:
        ways.append(("in the request", {}, {"user_id": user}))
    return ways


def cells(system: System, line: Line, over: Mapping[str, Mapping[str, str]]) -> Iterator[Cell]:
    """Everybody who calls an RPC, the same for each. Users are of this RPC alone, since one may erase them."""
    mine, theirs = f"ann of {line.rpc}", f"bob of {line.rpc}"
    public, store = line.permission == "public", line.whose == "store"

    def may(held: str, *, every: bool = False) -> str:
        if public:
            return ALLOWED
        return ALLOWED if permits(held, line.permission) and (every or not store) else DENIED

    nobody = ALLOWED if public else UNKNOWN
    for who, headers in (
        ("no key", {}),
        ("no Bearer", {"Authorization": f"Basic {ADMIN}"}),
        ("a bad key", {"Authorization": "Bearer a-key-that-nobody-has"}),
        *((f"a key that is {name}", headers) for name, headers in over.items()),
    ):
        yield Cell(who, headers, nobody, {})
    everything = sorted(PERMISSIONS - {"admin", "act_as"})
    agent = key(system, theirs, line.permission, "act_as") if not public else {}
    boss = key(system, theirs, "admin")
    if line.whose in ("user", "self"):
        bob = key(system, theirs, *everything)
        for way, headers, more in naming(line, mine):
            yield Cell(f"another user of the tenant {way}", bob | headers, DENIED, more)
            yield Cell(f"act_as {way}", agent | headers, ALLOWED if line.whose == "user" else DENIED, more)
            yield Cell(f"the tenant's admin {way}", boss | headers, ALLOWED, more)
        yield Cell("another user of the tenant, for himself", bob | _named(line, theirs), ALLOWED, {})
    for permission in sorted(PERMISSIONS):
        user = f"{permission} {mine}"
        yield Cell(f"only {permission}", key(system, user, permission) | _named(line, user), may(permission), {})
    yield Cell("the tenant's admin", boss, may("admin"), {})
    there = key(system, mine, "admin", tenant=OTHERS)
    # Public methods read no headers but those that everything has.
    yield Cell("another tenant's admin", there, may("admin"), {})
    elsewhere = ALLOWED if public else DENIED
    yield Cell("another tenant's admin in ours", there | {"X-Tenant-ID": OURS}, elsewhere, {})
    yield Cell("our admin in another tenant", boss | {"X-Tenant-ID": OTHERS}, elsewhere, {})
    every = key(system, mine, "admin", tenant="*")
    yield Cell("an admin of all tenants", every, may("admin", every=True), {})
    yield Cell("an admin of all tenants in ours", every | {"X-Tenant-ID": OURS}, may("admin", every=True), {})
    yield Cell(
        "the settings' key", {"Authorization": f"Bearer {ADMIN}"} | _user(line, mine), may("admin", every=True), {}
    )
    weak = key(system, mine, *[one for one in everything if not permits(one, line.permission)], tenant="*")
    yield Cell(
        "a key of all tenants without the permission", weak | {"X-Tenant-ID": OURS}, ALLOWED if public else DENIED, {}
    )


def _named(line: Line, user: str) -> dict[str, str]:
    return {"X-User-ID": user} if line.names else {}


def _user(line: Line, user: str) -> dict[str, str]:
    """The key of the settings is no user's: it names one."""
    return {"X-User-ID": user} if line.whose in ("user", "self") else {}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.rpc)
def test_rpc_when_everybody_calls_it_then_those_get_through_who_may(
    system: System, channel: grpc.Channel, over: dict[str, dict[str, str]], line: Line
) -> None:
    method = METHODS[line.rpc]
    path = line.path or ("" if method.routes else None)
    wrong = []
    for cell in cells(system, line, over):
        _counted["cells"] += 1
        chat = line.rpc in ("CreateChatCompletion", "StreamChatCompletion", "CreateResponse", "StreamResponse")
        request = dict(line.request)
        if cell.more:
            request = {"chat": {**line.request["chat"], **cell.more}} if chat else request | cell.more
        seen = over_grpc(channel, method, request, cell.headers)
        _counted["calls"] += 1
        through = seen.code.name in line.ends if cell.expected == ALLOWED else _GRPC.get(seen.code) == cell.expected
        if not through:
            wrong.append(f"gRPC, {cell.who}: {seen.code} {seen.message}, not {cell.expected}")
        if (
            line.whose == "user"
            and cell.expected == DENIED
            and cell.who.startswith("another user")
            and "act_as" not in seen.message
        ):
            wrong.append(f"gRPC, {cell.who}: {seen.message} does not name act_as")
        if path is None or (chat and cell.more) or (line.once and cell.expected == ALLOWED):
            continue
        status, answer = over_http(
            system, method, dict(line.http if line.http is not None else line.request) | cell.more, cell.headers, path
        )
        _counted["calls"] += 1
        if status >= 500 or _HTTP.get(status, ALLOWED) != cell.expected:
            wrong.append(f"HTTP, {cell.who}: {status} {json.dumps(answer)[:200]}, not {cell.expected}")
    assert not wrong, "\n".join(wrong)


def test_matrix_when_all_was_called_then_nobody_was_left_out() -> None:
    print(f"{_counted['cells']} cells of {len(LINES)} RPCs, {_counted['calls']} calls")
    assert _counted["calls"] >= _counted["cells"] >= 20 * len(LINES)
