"""Health as documented, over JSON and gRPC, with both stores, one, and none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.system import System


def eventually(check: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def served(system: System, service: str) -> str:
    with grpc.insecure_channel(system.grpc) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def error_of(answer: Any) -> tuple[str, str]:
    assert set(answer["error"]) == {"type", "message", "details", "code", "param"}
    return answer["error"]["type"], answer["error"]["code"]


def test_health_when_stores_come_and_go_then_says_so_everywhere(system: System) -> None:
    memory = {"user_id": "ada", "role": "user", "content": "I keep bees"}
    assert system.post("/v1/memory/add", memory)[0] == 200
    assert system.get("/health")[:2] == (200, {"status": "ok"})
    assert system.get("/health/status")[:2] == (200, {"mode": "ready", "redis": "up", "qdrant": "up"})
    status, answer, headers = system.get("/health/ready")
    assert (status, answer["status"], answer["timestamp"][-1]) == (200, "ready", "Z")
    assert "X-MemoryOS-Status" not in headers
    for service in ("", "memoryos.v1.MemoryService", "memoryos.v1.ChatService"):
        assert served(system, service) == "SERVING"

    with system.frozen("edge"):
        eventually(lambda: system.get("/health/status")[1]["qdrant"] == "down")
        assert system.get("/health/status")[:2] == (200, {"mode": "degraded_ready", "redis": "up", "qdrant": "down"})
        assert system.get("/health/ready")[:2][0] == 200
        assert system.get("/v1/models")[2]["X-MemoryOS-Status"] == "degraded"

        with system.frozen("valkey"):
            eventually(lambda: system.get("/health/status")[1]["redis"] == "down")
            assert system.get("/health/status")[:2] == (503, {"mode": "not_ready", "redis": "down", "qdrant": "down"})
            status, answer, _ = system.get("/health/ready")
            assert (status, answer["status"]) == (503, "not_ready")
            assert system.get("/health/live")[0] == 200
            assert served(system, "memoryos.v1.MemoryService") == "NOT_SERVING"
            assert served(system, "memoryos.v1.ChatService") == "SERVING"
            status, answer, headers = system.post("/v1/memory/add", memory)
            assert (status, *error_of(answer)) == (503, "ServiceUnavailable", "store_unavailable")
            assert headers["X-MemoryOS-Status"] == "degraded"
    eventually(lambda: system.get("/health/status")[1]["mode"] == "ready")
    assert system.post("/v1/memory/add", memory)[0] == 200


def test_health_when_the_server_is_gone_then_the_bridge_answers_alone(system: System) -> None:
    system.kill(bridge=False, group=True)
    assert system.get("/health")[:2] == (200, {"status": "ok"})
    status, answer, _ = system.get("/health/live")
    assert (status, answer["status"]) == (200, "ok")
    assert system.get("/health/status")[:2] == (503, {"mode": "not_ready", "redis": "down", "qdrant": "down"})
    assert system.get("/health/ready")[0] == 503
    status, answer, _ = system.post("/v1/memory/retrieve", {"user_id": "ada", "query": "bees"})
    assert (status, *error_of(answer)) == (503, "ServiceUnavailable", "server_unavailable")
    assert "memoryos_bridge_requests_total" in system.get("/metrics")[1]


@pytest.mark.embedded("only with embedded stores a data directory is one server's alone")
def test_server_when_the_data_directory_is_taken_then_says_whose(system: System, tmp_path: Path) -> None:
    second = System(tmp_path / "second", {"MEMORYOS_DATA_DIR": str(system.data)})
    assert system.server is not None
    try:
        with pytest.raises(RuntimeError, match=f"in use by process {system.server.pid}") as raised:
            second.start(bridge=False)
    finally:
        second.end()
    assert str(system.data) in str(raised.value)
    assert system.get("/health/status")[1]["mode"] == "ready"
