from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from scratch.v1 import scratch_service_pb2 as pb

from memoryos import schema
from memoryos.settings import ServerSettings, SettingsError
from memoryos_server.rpc.server import RpcServer
from tests.rpc.conftest import client, failure, lines
from tests.rpc.test_calls import eventually
from tests.scratch.serve import SCRATCH, SYSTEM, Scratch, run_scratch


async def test_stop_when_a_stream_is_under_way_then_it_ends_whole_and_its_finally_ran_before_stop_returned() -> None:
    async with run_scratch() as running, client(running.address) as stub:
        call = stub.ExportThings(pb.ExportThingsRequest(count=8, note="slow"))
        pieces = aiter(call)
        assert (await anext(pieces)).data.thing_count == 8
        stopping = asyncio.create_task(running.server.stop())
        assert len([piece async for piece in pieces]) == 7
        assert await call.code() is grpc.StatusCode.OK
        await stopping
        assert running.servicer.finished == ["ExportThings"]


async def test_stop_when_the_grace_is_over_then_the_call_is_cancelled_and_its_finally_ran_before_stop_returned() -> (
    None
):
    async with run_scratch(grace_seconds=0.1) as running, client(running.address) as stub:
        call = stub.ExportThings(pb.ExportThingsRequest(count=1000, note="slow"))
        await call.read()
        started = time.perf_counter()
        await running.server.stop()
        assert time.perf_counter() - started < 1
        assert running.servicer.finished == ["ExportThings"]
        assert running.servicer.running == 0


async def test_stop_when_drain_is_set_then_health_says_not_serving_while_calls_still_go_through() -> None:
    async with (
        run_scratch(drain_seconds=0.3) as running,
        client(running.address) as stub,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SYSTEM))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(running.server.stop())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await stub.ProbeThing(pb.ProbeThingRequest())).state == "fresh"
        assert not running.health.state.ready
        assert await watch.read() == grpc.aio.EOF
        await stopping


async def test_stop_when_somebody_watches_health_then_it_does_not_wait_for_him() -> None:
    async with run_scratch(grace_seconds=5.0) as running, grpc.aio.insecure_channel(running.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        await watch.read()
        started = time.perf_counter()
        await running.server.stop()
        assert time.perf_counter() - started < 1


async def test_stop_when_it_returned_then_nobody_can_connect(running: Scratch) -> None:
    await running.server.stop()
    async with client(running.address) as stub:
        seen = await failure(stub.ProbeThing(pb.ProbeThingRequest(), timeout=2))
    assert seen.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("service", ["grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"])
async def test_reflection_when_asked_then_it_lists_and_describes_the_services(running: Scratch, service: str) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        ask = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SYSTEM),
        ]
        listed, described = [answer async for answer in ask(iter(requests))]
    names = {each.name for each in listed.list_services_response.service}
    assert {SCRATCH, SYSTEM, "grpc.health.v1.Health", service} <= names
    file = descriptor_pb2.FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
    assert file.package == "memoryos.v1"


async def test_reflection_when_switched_off_then_it_is_unimplemented() -> None:
    async with run_scratch(reflection=False) as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest()]))]
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_listen_when_a_unix_socket_is_named_then_it_serves_there(tmp_path: Path) -> None:
    async with run_scratch(listen=f"unix:{tmp_path}/s") as running, client(running.address) as stub:
        assert running.address == f"unix:{tmp_path}/s"
        assert (await stub.ProbeThing(pb.ProbeThingRequest())).state == "fresh"


@pytest.mark.parametrize(
    "listen",
    [
        "0.0.0.0:0",
        "[::]:0",
        "[::ffff:0.0.0.0]:0",
        "192.0.2.1:0",
        "memory.example.com:0",
        "localhost.example.com:0",
        "127.0.0.1.example.com:0",
        "0:0",
        "dns:///localhost:0",
    ],
)
async def test_listen_when_open_to_others_without_auth_then_it_refuses_and_names_insecure(listen: str) -> None:
    with pytest.raises(SettingsError, match="insecure"):
        async with run_scratch(listen=listen):
            pass


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.9.1:0", "localhost:0"])
async def test_listen_when_only_this_machine_can_reach_it_then_it_needs_no_auth(listen: str) -> None:
    async with run_scratch(listen=listen) as running:
        assert lines(running, "listening_in_the_clear") == []


async def test_listen_when_plain_text_leaves_the_machine_then_it_warns_once() -> None:
    async with run_scratch(listen="0.0.0.0:0", auth_enabled=True, admin_key="a") as running:
        (warning,) = lines(running, "listening_in_the_clear")
        assert warning["level"] == "warning"


async def test_listen_when_open_to_others_with_auth_or_insecure_then_it_serves() -> None:
    async with run_scratch(listen="0.0.0.0:0", insecure=True) as running:
        assert running.address.startswith("0.0.0.0:")
    async with run_scratch(listen="0.0.0.0:0", auth_enabled=True, admin_key="a"):
        pass


async def test_listen_when_the_port_is_taken_then_it_says_so(running: Scratch) -> None:
    with pytest.raises(SettingsError, match=r"server\.listen"):
        async with run_scratch(listen=running.address):
            pass


async def test_message_when_over_the_limit_then_it_is_refused() -> None:
    async with run_scratch(max_message_bytes=1000) as running, client(running.address) as stub:
        seen = await failure(stub.CreateThing(pb.CreateThingRequest(name="a", blob=b"x" * 2000)))
    assert seen.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metrics_when_it_has_a_listener_then_prometheus_can_fetch_them() -> None:
    async with run_scratch(metrics_listen="127.0.0.1:0") as running, client(running.address) as stub:
        await stub.ProbeThing(pb.ProbeThingRequest())
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{running.metrics_address}/metrics") as answer,
        ):
            text = await answer.text()
            assert answer.content_type == "text/plain"
    assert 'memoryos_rpc_requests_total{code="OK",method="/scratch.v1.ScratchService/ProbeThing"} 1.0' in text
    assert "memoryos_server_process_resident_memory_bytes" in text


async def test_metrics_when_the_port_is_taken_then_it_says_so() -> None:
    async with run_scratch(metrics_listen="127.0.0.1:0") as running:
        with pytest.raises(SettingsError, match=r"server\.metrics_listen"):
            async with run_scratch(metrics_listen=running.metrics_address):
                pass


class Incomplete:
    async def CheckHealth(self, request: object, context: object) -> None:
        pass


@pytest.mark.parametrize(
    ("servicers", "match"),
    [
        ({}, "no servicer"),
        ({SYSTEM: Incomplete()}, "no method in Incomplete"),
    ],
)
async def test_server_when_an_rpc_is_not_served_then_it_refuses_to_be_made(
    running: Scratch, servicers: dict[str, object], match: str
) -> None:
    methods = [m for m in schema.load() if m.service == SYSTEM]
    with pytest.raises(schema.SchemaError, match=match):
        RpcServer(
            ServerSettings(),
            auth_enabled=False,
            insecure=False,
            methods=methods,
            servicers=servicers,
            around=lambda call: None,
            serving=running.health,
            board=running.board,
            logger=None,
        )


async def test_handler_when_many_calls_have_ended_then_none_is_counted_as_live(running: Scratch) -> None:
    async with client(running.address) as stub:
        await asyncio.gather(*(stub.ProbeThing(pb.ProbeThingRequest()) for _ in range(50)))
        await failure(stub.FailThing(pb.FailThingRequest()))
    await eventually(lambda: running.server._live.count == 0)
