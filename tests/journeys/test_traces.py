"""Traces through bridge, server, stores and provider, as a real collector gets them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.system import System, free_port
from tests.upstream import UpstreamProcess

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
USER, CONTENT, TENANT = "ann-of-traces", "a heron on the pier", "acme-of-traces"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.spans: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:
        with self._lock:
            self.raw.append(request.SerializeToString())
            for resource in request.resource_spans:
                service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        attributes = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
                        self.spans.append(
                            {
                                "service": service,
                                "name": span.name,
                                "trace": span.trace_id.hex(),
                                "id": span.span_id.hex(),
                                "parent": span.parent_span_id.hex(),
                                "kind": span.kind,
                                "failed": span.status.code == 2,
                                "attributes": attributes,
                            }
                        )
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace: str) -> list[dict[str, Any]]:
        with self._lock:
            return [span for span in self.spans if span["trace"] == trace]


@contextmanager
def collector() -> Iterator[tuple[Collector, str]]:
    kept = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield kept, f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def chat(system: System, **headers: str) -> int:
    body = {"model": "fake-1", "messages": [{"role": "user", "content": CONTENT}]}
    sent = {"X-User-ID": USER, "X-Tenant-ID": TENANT, **headers}
    return system.post("/v1/chat/completions", body, sent)[0]


def lines(system: System, log: str, event: str) -> list[dict[str, Any]]:
    text = (system.home / log).read_text()
    parsed = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in parsed if line.get("event") == event]


def wait(what: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_chat_when_a_collector_is_named_then_one_connected_trace_without_whose_or_what(tmp_path: Path) -> None:
    with collector() as (kept, endpoint), UpstreamProcess() as upstream:
        telemetry = {"MEMORYOS_TELEMETRY__ENDPOINT": endpoint, "MEMORYOS_TELEMETRY__SAMPLING_RATIO": "0"}
        with System(
            tmp_path, {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "sk-secret", **telemetry}
        ) as system:
            assert chat(system, traceparent=PARENT, tracestate="vendor=1") == 200
            assert chat(system) == 200  # begun here, and none of those is sampled
            system.stop()
            seen = [request["headers"] for request in upstream.requests()]
        spans = kept.of(TRACE)
        by_id = {span["id"]: span for span in spans}
        (bridge,) = [s for s in spans if s["service"] == "memoryos-bridge"]
        assert (bridge["name"], bridge["parent"]) == ("POST /v1/chat/completions", "00f067aa0ba902b7")
        assert bridge["attributes"] == {
            "http.request.method": "POST",
            "url.scheme": "http",
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
        }
        (rpc,) = [s for s in spans if s["service"] == "memoryos-server" and s["kind"] == 2]
        assert (rpc["name"], rpc["parent"]) == ("memoryos.v1.ChatService/CreateChatCompletion", bridge["id"])
        assert rpc["attributes"]["rpc.response.status_code"] == "OK"
        (provider,) = [s for s in spans if s["name"] == "POST /chat/completions"]
        assert provider["parent"] == rpc["id"]
        assert provider["attributes"]["http.response.status_code"] == 200
        assert seen[0]["traceparent"] == f"00-{TRACE}-{provider['id']}-01"
        assert seen[0]["tracestate"] == "vendor=1"
        stores = {s["attributes"].get("db.system.name") for s in spans}
        assert {"redis", "qdrant"} <= stores
        for span in spans:
            assert span is bridge or span["parent"] in by_id, span
            assert not span["failed"], span
        assert {span["trace"] for span in kept.spans} == {TRACE}
        assert not int(seen[1]["traceparent"][-2:], 16) & 1
        for raw in kept.raw:
            for secret in (USER, CONTENT, TENANT, "heron", "sk-secret"):
                assert secret.encode() not in raw
        assert lines(system, "server.log", "rpc")[-1]["trace_id"] == seen[1]["traceparent"][3:35]
        assert TRACE in {line.get("trace_id") for line in lines(system, "bridge.log", "http")}


def test_chat_when_nothing_is_exported_then_the_trace_is_passed_on_as_it_came_and_logged(tmp_path: Path) -> None:
    with UpstreamProcess() as upstream, System(tmp_path, {"OPENAI_BASE_URL": upstream.base_url}) as system:
        assert chat(system, traceparent=PARENT, tracestate="vendor=1") == 200
        assert chat(system) == 200
        for malformed in ("00-x", PARENT.replace(TRACE, "0" * 32), PARENT + "-more", "ff" + PARENT[2:]):
            assert chat(system, traceparent=malformed) == 200
        seen = [request["headers"] for request in upstream.requests()]
        assert (seen[0]["traceparent"], seen[0]["tracestate"]) == (PARENT, "vendor=1")
        assert [headers.get("traceparent") for headers in seen[1:]] == [None] * 5
        for log, event in (("server.log", "rpc"), ("bridge.log", "http")):
            ids = [line.get("trace_id") for line in lines(system, log, event)]
            assert ids.count(TRACE) == 1, log
            assert set(ids) == {TRACE, None}, log
        remembered = [line for line in lines(system, "server.log", "rpc") if line.get("trace_id") == TRACE]
        assert remembered[0]["method"].endswith("CreateChatCompletion")


@pytest.mark.timeout(60)
def test_chat_when_the_collector_is_away_then_it_is_answered_and_the_stop_does_not_hang(tmp_path: Path) -> None:
    env = {"MEMORYOS_TELEMETRY__ENDPOINT": f"http://127.0.0.1:{free_port()}", "MEMORYOS_TELEMETRY__SAMPLING_RATIO": "1"}
    with System(tmp_path, env) as system:
        assert system.post("/v1/memory/add", {"user_id": "ann", "role": "user", "content": "Tea."})[0] == 200
        wait(lambda: "trace_id" in json.dumps(lines(system, "server.log", "rpc")))
        began = time.monotonic()
        system.stop()
        assert time.monotonic() - began < 20


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_processes_when_no_collector_is_named_then_they_load_no_exporter() -> None:
    loaded = run(
        "import sys, memoryos_server.app, memoryos_bridge.run\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk.trace', 'opentelemetry.exporter', 'memoryos.spans'))])"
    )
    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"endpoint": "127.0.0.1:4317"}, "telemetry.endpoint must be a URL"),
        ({"endpoint": "http://127.0.0.1:4317", "sampling_ratio": 1.5}, "telemetry.sampling_ratio must be between"),
    ],
)
def test_exporter_when_a_setting_is_wrong_then_it_is_named(settings: dict[str, Any], told: str) -> None:
    code = (
        "import asyncio\nfrom memoryos.settings import TelemetrySettings, SettingsError\n"
        "from memoryos.spans import exported\n"
        f"async def main():\n    async with exported(TelemetrySettings(**{settings!r}), 'server'): pass\n"
        "try: asyncio.run(main())\nexcept SettingsError as error: print(error)\n"
    )
    assert told in run(code)


def test_exporter_when_the_extra_is_missing_then_it_says_how_to_add_it() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
        "from memoryos.settings import SettingsError\n"
        "try: import memoryos.spans\nexcept SettingsError as error: print(error)\n"
    )
    assert "memoryos[otel]" in run(code)
