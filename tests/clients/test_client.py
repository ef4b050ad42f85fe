from __future__ import annotations

import inspect
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import pytest

import memoryos
from memoryos import AsyncClient, Client, calls, errors
from memoryos.v1 import error_reason_pb2, memory_service_pb2, memory_service_pb2_grpc
from tests.clients.conftest import Script, Servicer, failing
from tests.system import free_port

UNAVAILABLE = failing(grpc.StatusCode.UNAVAILABLE, "draining", "SERVER_UNAVAILABLE")


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, api_key="key-1", user_id="张三 & co", tenant_id="acme") as made:
        yield made


def test_metadata_when_the_client_has_an_identity_then_every_call_carries_it(client: Client, script: Script) -> None:
    client.retrieve("coffee?")
    client.retrieve("coffee?", user_id="bob")
    first, second = script.metadata
    assert first["authorization"] == "Bearer key-1"
    assert first["x-tenant-id"] == "acme"
    assert first["x-user-id"] == "%E5%BC%A0%E4%B8%89%20%26%20co"
    assert second["x-user-id"] == "bob"
    assert first["x-request-id"] != second["x-request-id"]


def test_key_when_the_identity_is_printed_then_it_is_not_shown() -> None:
    assert "key-1" not in repr(calls.Identity("key-1", "ann"))


def test_add_when_no_event_id_is_given_then_a_uuid7_is_sent_and_answered(client: Client, script: Script) -> None:
    before = time.time_ns() // 1_000_000
    added = client.add("Black coffee.", session_id="s1", name="Ann", timestamp=datetime(2026, 1, 2, tzinfo=UTC))
    request = script.requests[0]
    made = uuid.UUID(request.event_id)
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000
    assert (added.event_id, added.memory_id, added.duplicate) == (request.event_id, "m1", False)
    assert (request.role, request.session_id, request.name) == (1, "s1", "Ann")
    assert request.timestamp.ToJsonString() == "2026-01-02T00:00:00Z"
    assert request.user_id == ""


@pytest.mark.parametrize(
    ("role", "moment", "says"),
    [("robot", None, "user, assistant, system"), ("user", datetime(2026, 1, 1), "zone")],  # noqa: DTZ001  # the point
)
def test_add_when_an_argument_cannot_be_meant_then_nothing_is_sent(
    client: Client, script: Script, role: str, moment: datetime | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        client.add("x", role, timestamp=moment)
    assert script.requests == []


def test_retrieve_when_answered_then_values_are_plain(client: Client, script: Script) -> None:
    script.initial = (("memoryos-status", "degraded"),)
    found = client.retrieve("coffee?", limit=3, explain=True)
    assert found.episodes[0].role == "user"
    assert found.episodes[0].timestamp == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert found.profile == "drinks coffee"
    assert found.degraded
    request = script.requests[0]
    assert (request.limit, request.explain, request.HasField("min_score")) == (3, True, False)


def test_other_calls_when_answered_then_values_are_plain(client: Client) -> None:
    assert client.history("m1")[0].content == "a"
    assert client.models()[0].id == "memoryos/recall"
    health = client.health()
    assert (health.mode, health.redis, health.qdrant) == ("degraded_ready", "up", "down")
    answer = client.chat("How?", model="memoryos/recall")
    assert (answer.content, answer.memory.injected[0].tier) == ("Black.", "episode")


def test_chat_when_messages_are_openais_then_what_is_not_plain_travels_whole(client: Client, script: Script) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "你好"}]}
    client.chat(
        [{"role": "system", "content": "Be brief."}, parts], model="m", memory="read", temperature=0, extra={"seed": 7}
    )
    chat = script.requests[0].chat
    assert (chat.messages[0].content, chat.messages[0].HasField("message_json")) == ("Be brief.", False)
    assert chat.messages[1].message_json == '{"role": "user", "content": [{"type": "text", "text": "你好"}]}'
    assert (chat.memory, chat.temperature, chat.HasField("temperature"), chat.extra_json) == (2, 0, True, '{"seed": 7}')


def test_deadline_when_none_is_given_then_it_is_the_methods_own(client: Client, script: Script) -> None:
    client.retrieve("coffee?")
    client.retrieve("coffee?", timeout=3)
    assert 8 < script.remaining[0] < 10.5
    assert 2 < script.remaining[1] < 3.5


def test_deadline_when_it_passes_then_the_call_ends_with_it(client: Client, script: Script) -> None:
    script.failures = [lambda context: time.sleep(2.0)]
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        client.retrieve("coffee?", timeout=0.2)
    assert time.monotonic() - started < 1.5


def test_retry_when_unavailable_then_the_same_ids_are_sent_again(client: Client, script: Script) -> None:
    script.failures = [UNAVAILABLE, UNAVAILABLE]
    client.add("I take my coffee black.")
    assert len(script.requests) == 3
    assert len({request.event_id for request in script.requests}) == 1
    assert len({seen["x-request-id"] for seen in script.metadata}) == 1


def test_retry_when_unavailable_goes_on_then_it_gives_up_after_five_attempts(client: Client, script: Script) -> None:
    script.failures = [UNAVAILABLE] * 9
    with pytest.raises(errors.Unavailable) as caught:
        client.retrieve("coffee?")
    assert len(script.requests) == calls.ATTEMPTS
    assert caught.value.reason == "server_unavailable"


def test_retry_when_the_server_asks_for_more_time_than_is_left_then_it_gives_up(client: Client, script: Script) -> None:
    script.failures = [failing(grpc.StatusCode.UNAVAILABLE, "wait", "STORE_UNAVAILABLE", retry=30)]
    started = time.monotonic()
    with pytest.raises(errors.Unavailable) as caught:
        client.retrieve("coffee?", timeout=2)
    assert time.monotonic() - started < 1
    assert caught.value.retry_after == 30


@pytest.mark.parametrize("call", ["chat", "stream"])
def test_retry_when_it_is_not_repeatable_then_it_is_sent_once(client: Client, script: Script, call: str) -> None:
    script.failures = [UNAVAILABLE]
    ask = client.chat if call == "chat" else lambda *a, **k: list(client.stream_chat(*a, **k))
    with pytest.raises(errors.Unavailable):
        ask("How?", model="m")
    assert len(script.requests) == 1


def test_retry_when_the_failure_is_the_callers_then_it_is_sent_once(client: Client, script: Script) -> None:
    script.failures = [
        failing(
            grpc.StatusCode.INVALID_ARGUMENT, "limit must be 1..1000", "INVALID_ARGUMENT", param="limit", details="d"
        )
    ]
    with pytest.raises(errors.InvalidArgument) as caught:
        client.retrieve("coffee?", limit=0)
    error = caught.value
    assert len(script.requests) == 1
    assert (error.message, error.param, error.details) == ("limit must be 1..1000", "limit", "d")
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.request_id == script.metadata[0]["x-request-id"]
    assert str(error) == f"limit must be 1..1000 [invalid_argument, param limit, request {error.request_id}]"


def test_server_when_nobody_listens_then_the_call_waits_for_its_return_within_the_deadline(script: Script) -> None:
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    with Client(address) as client, pytest.raises(errors.Unavailable) as caught:
        client.retrieve("coffee?", timeout=1)
    assert time.monotonic() - started < 1.5
    assert caught.value.reason == ""


def test_reasons_when_the_proto_has_one_then_there_is_an_exception_for_it() -> None:
    names = {v.name.removeprefix("ERROR_REASON_").lower() for v in error_reason_pb2.ErrorReason.DESCRIPTOR.values[1:]}
    assert set(errors._BY_REASON) == names


@pytest.mark.parametrize(
    ("reason", "code", "kind"),
    [
        ("EVENT_ID_CONFLICT", grpc.StatusCode.ALREADY_EXISTS, errors.Conflict),
        ("TOO_LARGE", grpc.StatusCode.RESOURCE_EXHAUSTED, errors.TooLarge),
        ("TOO_MANY_REQUESTS", grpc.StatusCode.RESOURCE_EXHAUSTED, errors.TooManyRequests),
        ("UPSTREAM_FAILED", grpc.StatusCode.UNAVAILABLE, errors.UpstreamError),
        ("NOT_IN_OUR_VERSION", grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        ("", grpc.StatusCode.INTERNAL, errors.InternalError),
    ],
)
def test_errors_when_the_server_gives_a_reason_then_the_exception_follows_it(
    client: Client, script: Script, reason: str, code: grpc.StatusCode, kind: type[errors.MemoryOSError]
) -> None:
    script.failures = [failing(code, "no", reason)]
    with pytest.raises(errors.MemoryOSError) as caught:
        client.chat("How?", model="m")
    assert type(caught.value) is kind
    assert caught.value.reason == reason.lower()


def test_stream_when_it_completes_then_text_and_memory_are_known(client: Client) -> None:
    with client.stream_chat("How?", model="m") as stream:
        assert stream.memory is None
        assert list(stream) == ["Black", "."]
    assert stream.completed
    assert stream.memory is not None
    assert (stream.memory.remembered, stream.memory.event_id, stream.finish_reason) == ("true", "e1", "stop")


def test_stream_when_it_is_left_then_the_server_notices(client: Client, script: Script) -> None:
    script.hang = True
    with client.stream_chat("How?", model="m") as stream:
        assert next(iter(stream)) == "Black"
    assert script.cancelled.wait(2)
    assert not stream.completed
    assert stream.memory is not None
    assert stream.memory.remembered == "pending"


def test_stream_when_it_fails_midway_then_the_text_so_far_came(client: Client, script: Script) -> None:
    # The first failure belongs to the call's start, the second to its middle.
    script.failures = [lambda context: None, failing(grpc.StatusCode.UNAVAILABLE, "gone", "UPSTREAM_FAILED")]
    seen: list[str] = []
    stream = client.stream_chat("How?", model="m")
    with pytest.raises(errors.UpstreamError):
        seen.extend(stream)
    assert seen == ["Black", "."]
    assert not stream.completed


def test_call_when_an_rpc_has_no_method_of_its_own_then_it_is_reached_by_name(client: Client) -> None:
    request = memory_service_pb2.GetMemoryHistoryRequest(memory_id="m1")
    answer = client.call("GetMemoryHistory", request)
    assert isinstance(answer, memory_service_pb2.GetMemoryHistoryResponse)
    with pytest.raises(KeyError):
        client.call("NoSuchRpc", request)


def test_client_when_threads_share_it_then_all_calls_succeed(client: Client, script: Script) -> None:
    threads = [threading.Thread(target=lambda: [client.retrieve("x") for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(script.requests) == 20


def test_client_when_the_server_comes_back_then_a_repeatable_call_succeeds(script: Script) -> None:
    port = free_port()
    server = grpc.server(ThreadPoolExecutor(2))
    memory_service_pb2_grpc.add_MemoryServiceServicer_to_server(Servicer(script), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    timer = threading.Timer(0.3, server.start)
    timer.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            assert client.retrieve("coffee?").episodes
    finally:
        timer.join()
        server.stop(0).wait(5)


def test_tls_when_asked_of_a_plain_server_then_nothing_is_sent(address: str, script: Script) -> None:
    with Client(address, api_key="key-1", tls=True) as client, pytest.raises(errors.Unavailable):
        client.health(timeout=1)
    assert script.metadata == []


def test_tls_when_credentials_are_given_then_they_are_used() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(5)
        client = Client(f"127.0.0.1:{listener.getsockname()[1]}", credentials=grpc.ssl_channel_credentials())
        caller = ThreadPoolExecutor(1).submit(client.health, timeout=1)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1) == b"\x16"  # a TLS handshake
        assert isinstance(caller.exception(10), errors.MemoryOSError)
        client.close()


def test_clients_when_compared_then_both_offer_the_same() -> None:
    def offered(cls: type) -> dict[str, list[str]]:
        public = {
            n: f for n, f in inspect.getmembers(cls, inspect.isfunction) if not n.startswith("_") or n == "__init__"
        }
        return {name: [str(p) for p in inspect.signature(f).parameters.values()] for name, f in public.items()}

    assert offered(Client) == offered(AsyncClient)


def test_package_when_imported_then_grpc_is_not() -> None:
    code = "import sys, memoryos, memoryos.settings; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute"):
        _ = memoryos.Nonsense
