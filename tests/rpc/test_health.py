from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scratch.v1 import scratch_service_pb2 as pb

from memoryos.v1 import system_service_pb2 as system
from memoryos.v1 import system_service_pb2_grpc
from tests.rpc.conftest import client
from tests.rpc.test_calls import eventually
from tests.scratch.serve import SCRATCH, SYSTEM, Backend, Scratch, run_scratch

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def stubs(running: Scratch) -> AsyncIterator[tuple[Any, Any]]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield health_pb2_grpc.HealthStub(channel), system_service_pb2_grpc.SystemServiceStub(channel)


@pytest.mark.parametrize(
    ("redis", "qdrant", "mode", "ready"),
    [
        (True, True, system.SERVING_MODE_READY, "ready"),
        (True, False, system.SERVING_MODE_DEGRADED_READY, "ready"),
        (False, True, system.SERVING_MODE_DEGRADED_READY, "ready"),
        (False, False, system.SERVING_MODE_NOT_READY, "not_ready"),
    ],
)
async def test_system_when_stores_are_up_or_down_then_it_says_so(
    redis: bool, qdrant: bool, mode: int, ready: str
) -> None:
    async with (
        run_scratch(redis=Backend(redis), vectors=Backend(qdrant)) as running,
        stubs(running) as (health, probes),
    ):
        status = await probes.GetHealthStatus(system.GetHealthStatusRequest())
        assert (status.mode, status.redis, status.qdrant) == (mode, 1 if redis else 2, 1 if qdrant else 2)
        assert (await probes.CheckReadiness(system.CheckReadinessRequest())).status == ready
        live = await probes.CheckLiveness(system.CheckLivenessRequest())
        assert live.status == "ok"
        assert abs(live.timestamp.seconds - time.time()) < 5
        assert (await probes.CheckHealth(system.CheckHealthRequest())).status == "ok"
        overall = await health.Check(health_pb2.HealthCheckRequest(service=""))
        assert overall.status == (SERVING if ready == "ready" else NOT_SERVING)
        text = (await probes.GetMetrics(system.GetMetricsRequest())).text
        assert f'memoryos_backend_up{{backend="redis"}} {float(redis)}' in text
        assert f'memoryos_backend_up{{backend="qdrant"}} {float(qdrant)}' in text


async def test_readiness_when_both_are_down_and_noop_is_ready_then_it_is_ready() -> None:
    down = {"redis": Backend(False), "vectors": Backend(False)}
    async with run_scratch(ready_when_noop=True, **down) as running, stubs(running) as (health, probes):
        assert (await probes.CheckReadiness(system.CheckReadinessRequest())).status == "ready"
        status = await probes.GetHealthStatus(system.GetHealthStatusRequest())
        assert status.mode == system.SERVING_MODE_NOT_READY
        assert (await health.Check(health_pb2.HealthCheckRequest(service=""))).status == SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest(service=SCRATCH))).status == NOT_SERVING


async def test_check_when_asked_for_each_service_then_each_answers_and_others_are_not_found() -> None:
    async with run_scratch() as running, stubs(running) as (health, _):
        for service in ("", SCRATCH, SYSTEM):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="nobody.v1.Service"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_when_both_stores_go_down_and_come_back_then_it_tells_within_1500_ms() -> None:
    async with run_scratch() as running, stubs(running) as (health, _):
        of_scratch = health.Watch(health_pb2.HealthCheckRequest(service=SCRATCH))
        of_system = health.Watch(health_pb2.HealthCheckRequest(service=SYSTEM))
        assert (await of_scratch.read()).status == SERVING
        assert (await of_system.read()).status == SERVING
        running.redis.up = running.vectors.up = False
        async with asyncio.timeout(1.5):
            assert (await of_scratch.read()).status == NOT_SERVING
        running.redis.up = True
        async with asyncio.timeout(1.5):
            assert (await of_scratch.read()).status == SERVING
        with pytest.raises(TimeoutError):  # what needs no store never stopped serving
            await asyncio.wait_for(of_system.read(), 0.05)


async def test_watch_when_the_service_is_unknown_then_it_says_so_and_stays_open() -> None:
    async with run_scratch() as running, stubs(running) as (health, _):
        watch = health.Watch(health_pb2.HealthCheckRequest(service="nobody.v1.Service"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.read(), 0.05)


async def test_probe_when_a_store_hangs_then_it_is_down_within_1500_ms_and_calls_are_marked() -> None:
    async with run_scratch() as running, client(running.address) as stub:
        call = stub.ProbeThing(pb.ProbeThingRequest())
        await call
        assert "memoryos-status" not in dict(await call.initial_metadata())

        async def hang() -> None:
            await asyncio.sleep(3600)

        running.health._probes["redis"] = hang
        await eventually(lambda: not running.health.state.redis, 1.5)
        call = stub.ProbeThing(pb.ProbeThingRequest())
        await call
        assert dict(await call.initial_metadata())["memoryos-status"] == "degraded"
        stream = stub.ExportThings(pb.ExportThingsRequest(count=1))
        assert dict(await stream.initial_metadata())["memoryos-status"] == "degraded"
        [_ async for _ in stream]


async def test_info_when_asked_then_says_whether_keys_are_needed() -> None:
    async with run_scratch(auth_enabled=True, admin_key="a") as running, stubs(running) as (_, probes):
        info = await probes.GetServerInfo(system.GetServerInfoRequest())
        assert info.auth_enabled
        assert info.version.count(".") == 2
