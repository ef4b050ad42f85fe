from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from memoryos import schema
from memoryos_bridge.answers import Answer
from tests.bridge.conftest import ALL, System, run_bridge
from tests.scratch.serve import serve_scratch

FAULTS = [
    ("Invalid", 400, "BadRequest", "invalid_argument"),
    ("Invalid:model_not_found", 400, "BadRequest", "model_not_found"),
    ("Unauthenticated", 401, "Unauthorized", "unauthenticated"),
    ("Unauthenticated:key_expired", 401, "Unauthorized", "key_expired"),
    ("Forbidden", 403, "Forbidden", "permission_denied"),
    ("NotFound", 404, "NotFound", "not_found"),
    ("Exists", 409, "Conflict", "already_exists"),
    ("Exists:event_id_conflict", 409, "Conflict", "event_id_conflict"),
    ("Stale", 409, "Conflict", "stale"),
    ("Expired", 410, "Gone", "session_expired"),
    ("TooLarge", 413, "PayloadTooLarge", "too_large"),
    ("TooMany", 429, "TooManyRequests", "too_many_requests"),
    ("Upstream", 502, "ExternalServiceError", "upstream_failed"),
    ("BackendDown", 503, "ServiceUnavailable", "store_unavailable"),
    ("DeadlineExceeded", 504, "Timeout", "deadline_exceeded"),
    ("UpstreamRejected:404", 404, "NotFound", "their_code"),
    ("UpstreamRejected:413", 413, "PayloadTooLarge", "their_code"),
    ("UpstreamRejected:422", 422, "BadRequest", "their_code"),
    ("UpstreamRejected:429", 429, "TooManyRequests", "their_code"),
    ("", 500, "InternalError", "internal"),
]


@pytest.mark.parametrize(("fault", "status", "kind", "code"), FAULTS)
async def test_fault_when_the_server_raises_it_then_its_status_and_shape(
    http: httpx.AsyncClient, fault: str, status: int, kind: str, code: str
) -> None:
    answer = await http.post("/v1/scratch/fail", json={"fault": fault}, headers={"x-request-id": "r-1"})
    assert answer.status_code == status
    body = answer.json()
    assert list(body) == ["success", "error"]
    assert body["success"] is False
    assert (body["error"]["type"], body["error"]["code"]) == (kind, code)
    assert set(body["error"]) == {"type", "message", "details", "code", "param"}
    assert answer.headers["x-request-id"] == "r-1"
    assert "secret" not in answer.text
    if fault.startswith("UpstreamRejected"):
        assert body["error"]["message"] == "The provider says no"
        assert body["error"]["param"] == "temperature"
    elif fault.startswith("Invalid"):
        assert (body["error"]["param"], body["error"]["details"]) == ("fault", "More about it")
    else:
        assert body["error"]["param"] is None


async def test_fault_when_it_says_when_to_come_back_then_retry_after(http: httpx.AsyncClient) -> None:
    body = {"fault": "TooMany", "retry_after_seconds": 1.2}
    assert (await http.post("/v1/scratch/fail", json=body)).headers["retry-after"] == "2"
    answer = await http.post("/v1/scratch/fail", json={"fault": "TooMany"})
    assert "retry-after" not in answer.headers


async def test_deadline_when_it_passes_then_504(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/scratch/sleep", json={"seconds": 5})
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "Timeout"
    assert "success" not in answer.json()


async def test_required_field_when_missing_then_the_servers_400_names_it(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/scratch/things", json={})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "name"


async def test_degraded_when_a_store_is_down_then_the_header_says_so_on_answers_and_errors(system: System) -> None:
    assert "x-memoryos-status" not in (await system.http.get("/v1/scratch/things")).headers
    system.scratch.redis.up = False
    for _ in range(60):
        answer = await system.http.get("/v1/scratch/things")
        if "x-memoryos-status" in answer.headers:
            break
        await asyncio.sleep(0.05)
    assert answer.headers["x-memoryos-status"] == "degraded"
    answer = await system.http.get("/v1/scratch/things/none")
    assert (answer.status_code, answer.headers["x-memoryos-status"]) == (404, "degraded")
    answer = await system.http.post("/v1/scratch/export", json={"count": 2})
    assert answer.headers["x-memoryos-status"] == "degraded"


async def test_crash_when_the_bridge_itself_fails_then_500_in_the_same_shape(
    monkeypatch: pytest.MonkeyPatch, system: System
) -> None:
    def crash(*_: Any) -> Any:
        raise RuntimeError("a secret that nobody may see")

    monkeypatch.setattr(Answer, "whole", crash)
    answer = await system.http.get("/v1/scratch/things")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "secret" not in answer.text
    (line,) = system.bridge.lines("crash")
    assert "RuntimeError at" in line["exception"]
    assert b"a secret" not in system.bridge.log.getvalue()
    assert (await system.http.get("/nothing")).status_code == 404


async def test_schema_when_only_scratch_is_loaded_then_the_bridge_serves_it_alone() -> None:
    async with serve_scratch() as address, run_bridge(address, schema.load([ALL[-1]])) as bridge:
        assert (await bridge.client.get("/v1/scratch/things")).status_code == 200
        assert (await bridge.client.get("/health")).status_code == 404
        paths = (await bridge.client.get("/openapi.json")).json()["paths"]
        assert all(path.startswith("/v1/scratch/") for path in paths)
