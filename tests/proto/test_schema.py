"""What `memoryos.schema` refuses, so that a mistake in a proto stops the start and not a user."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from scratch.v1 import scratch_service_pb2

from memoryos import schema
from memoryos.v1 import options_pb2

_numbers = itertools.count()

Rpc = dict[str, Any]


def proto(*rpcs: Rpc) -> FileDescriptor:
    """A file with one service; an RPC's keys are `policy`, `rest`, `http`, `server_streaming`, `client_streaming`."""
    package = f"bad{next(_numbers)}.v1"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}/service.proto", package=package, syntax="proto3")
    file.dependency.extend(["google/api/annotations.proto", "memoryos/v1/options.proto"])
    kinds = descriptor_pb2.FieldDescriptorProto
    for name in ("Request", "Answer"):
        message = file.message_type.add(name=name)
        message.field.add(name="id", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
        message.field.add(name="items", number=2, type=kinds.TYPE_STRING, label=kinds.LABEL_REPEATED)
        message.field.add(name="count", number=3, type=kinds.TYPE_UINT32, label=kinds.LABEL_OPTIONAL)
    service = file.service.add(name="BadService")
    for index, rpc in enumerate(rpcs):
        method = service.method.add(
            name=f"Rpc{index}", input_type=f".{package}.Request", output_type=f".{package}.Answer"
        )
        method.server_streaming = rpc.get("server_streaming", False)
        method.client_streaming = rpc.get("client_streaming", False)
        method.options.Extensions[options_pb2.policy].MergeFrom(options_pb2.Policy(**rpc.get("policy", GOOD)))
        if "rest" in rpc:
            method.options.Extensions[options_pb2.rest].MergeFrom(options_pb2.Rest(**rpc["rest"]))
        for key, value in rpc.get("http", {}).items():
            if key == "custom":
                method.options.Extensions[annotations_pb2.http].custom.kind = value
            else:
                setattr(method.options.Extensions[annotations_pb2.http], key, value)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(file.name)


GOOD: dict[str, Any] = {"permission": options_pb2.PERMISSION_CHAT, "default_deadline_seconds": 1}


def test_load_when_a_proto_is_good_then_the_method_says_all_of_itself() -> None:
    (method,) = schema.load([proto({"http": {"post": "/v1/a/{id}", "body": "*"}})])
    assert (method.name, method.permission, method.deadline, method.streams) == ("Rpc0", "chat", 1.0, False)
    assert method.path == f"/{method.service}/Rpc0"
    assert [(r.verb, r.template, r.parameters, r.body) for r in method.routes] == [("POST", "/v1/a/{id}", ("id",), "*")]


@pytest.mark.parametrize(
    ("rpc", "why"),
    [
        ({"policy": {"default_deadline_seconds": 1}}, "no permission"),
        ({"policy": {"permission": options_pb2.PERMISSION_CHAT}}, "no default_deadline_seconds"),
        ({"client_streaming": True}, "streams requests"),
        ({"http": {"custom": "HEAD"}}, "verb"),
        ({"http": {"get": "v1/a"}}, "does not start with /"),
        ({"http": {"get": "/v1/{id=things/*}"}}, "cannot be served"),
        ({"http": {"get": "/v1/a/**"}}, "cannot be served"),
        ({"http": {"get": "/v1/a:verb"}}, "cannot be served"),
        ({"http": {"get": "/v1//a"}}, "cannot be served"),
        ({"http": {"get": "/v1/{nothing}"}}, "no plain field"),
        ({"http": {"get": "/v1/{items}"}}, "no plain field"),
        ({"http": {"get": "/v1/{id}/{id}"}}, "twice"),
        ({"http": {"post": "/v1/a", "body": "nothing"}}, "body names"),
        ({"http": {"get": "/v1/a", "response_body": "nothing"}}, "response_body names"),
        ({"server_streaming": True, "http": {"get": "/v1/a"}}, "which field"),
        ({"rest": {"stream": ["items"]}}, "server-streaming"),
        ({"server_streaming": True, "rest": {"stream": ["items", "count"]}}, "no repeated field"),
        ({"server_streaming": True, "rest": {"stream": ["a.items"]}}, "no field"),
        ({"rest": {"when_unreachable": [options_pb2.FieldValue(field="nothing")]}}, "no field"),
        ({"rest": {"status_when": [options_pb2.StatusWhen(field="nothing")]}}, "no field"),
    ],
)
def test_load_when_an_rpc_cannot_be_served_then_it_is_refused_by_name(rpc: Rpc, why: str) -> None:
    with pytest.raises(schema.SchemaError, match=why) as caught:
        schema.load([proto(rpc)])
    assert "BadService/Rpc0" in str(caught.value)


def test_load_when_two_rpcs_have_one_route_then_both_are_named() -> None:
    file = proto({"http": {"get": "/v1/things/{id}"}}, {"http": {"get": "/v1/things/{id}"}})
    with pytest.raises(schema.SchemaError, match=r"Rpc1.*also the route of .*Rpc0"):
        schema.load([file])


def test_load_when_two_services_share_a_route_then_it_is_refused() -> None:
    files = [proto({"http": {"get": "/v1/twice"}}), proto({"http": {"get": "/v1/twice"}})]
    with pytest.raises(schema.SchemaError, match="also the route"):
        schema.load(files)


def test_load_when_verbs_differ_then_a_path_may_be_shared() -> None:
    assert len(schema.load([proto({"http": {"get": "/v1/a"}}, {"http": {"delete": "/v1/a"}})])) == 2


def test_load_when_given_the_real_protos_then_each_says_who_may_call_for_how_long() -> None:
    methods = schema.load()
    assert {m.service for m in methods} >= {"memoryos.v1.SystemService", "memoryos.v1.ChatService"}
    for method in methods:
        assert method.permission == "public" or method.policy.audit.event_type or method.whose == "nobody", method.name


def test_load_when_given_the_real_protos_then_whatever_changes_or_carries_off_is_recorded_before_it_is_answered() -> (
    None
):
    for method in schema.load():
        audit = method.policy.audit
        if not audit.event_type:
            continue
        carries_off = method.name.startswith("Export")
        reads = method.idempotency == "NO_SIDE_EFFECTS" and not carries_off
        kind = options_pb2.AUDIT_KIND_READ if reads else options_pb2.AUDIT_KIND_CHANGE
        assert audit.kind == kind, method.name


def test_routes_when_sorted_then_a_literal_comes_before_a_parameter() -> None:
    routes = [r for m in schema.load([scratch_service_pb2.DESCRIPTOR]) for r in m.routes if r.verb == "GET"]
    templates = [r.template for r in sorted(routes, key=lambda r: r.sort_key)]
    assert templates.index("/v1/scratch/things/saved") < templates.index("/v1/scratch/things/{id}")


def test_permissions_when_named_in_the_proto_then_keys_can_hold_them() -> None:
    from memoryos_server.domain.core.caller import PERMISSIONS

    names = [value.name for value in options_pb2.Permission.DESCRIPTOR.values]
    named = {name.removeprefix("PERMISSION_").lower().replace("memory_", "memory.") for name in names}
    assert named - {"unspecified", "public"} == PERMISSIONS - {"memory", "act_as"}
