from __future__ import annotations

from typing import Any

import pytest
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from memoryos_server.domain.core.faults import Invalid
from memoryos_server.rpc.required import _check, _plan

KINDS = descriptor_pb2.FieldDescriptorProto


def node_class() -> Any:
    """A message that holds itself: Node{name!, kids*, kind!, weight?!, size!, twin?}."""
    file = descriptor_pb2.FileDescriptorProto(name="nested/v1/node.proto", package="nested.v1", syntax="proto3")
    file.dependency.append("google/api/field_behavior.proto")
    enum = file.enum_type.add(name="Kind")
    enum.value.add(name="KIND_UNSPECIFIED", number=0)
    enum.value.add(name="KIND_ONE", number=1)
    node = file.message_type.add(name="Node")
    one, many = KINDS.LABEL_OPTIONAL, KINDS.LABEL_REPEATED
    needed = [
        node.field.add(name="name", number=1, type=KINDS.TYPE_STRING, label=one),
        node.field.add(name="kind", number=3, type=KINDS.TYPE_ENUM, type_name=".nested.v1.Kind", label=one),
        node.field.add(name="weight", number=4, type=KINDS.TYPE_DOUBLE, label=one, proto3_optional=True, oneof_index=0),
        node.field.add(name="size", number=5, type=KINDS.TYPE_UINT32, label=one),
    ]
    node.oneof_decl.add(name="_weight")
    node.field.add(name="kids", number=2, type=KINDS.TYPE_MESSAGE, type_name=".nested.v1.Node", label=many)
    node.field.add(name="twin", number=6, type=KINDS.TYPE_MESSAGE, type_name=".nested.v1.Node", label=one)
    for field in needed:
        field.options.Extensions[field_behavior_pb2.field_behavior].append(field_behavior_pb2.REQUIRED)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nested.v1.Node"))


Node = node_class()
PLAN = _plan(Node.DESCRIPTOR, {})


def good(**more: Any) -> Any:
    return Node(**{"name": "a", "kind": 1, "weight": 0.0} | more)


def test_check_when_all_is_there_then_it_passes_and_zeros_count_as_meant() -> None:
    _check(good(kids=[good(), good(twin=good())]), PLAN, "")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (good(name=""), "name"),
        (good(kind=0), "kind"),
        (good(kind=9), "kind"),
        (Node(name="a", kind=1), "weight"),
        (good(twin=good(name="")), "twin.name"),
        (good(kids=[good(), good(kids=[good(kind=0)])]), "kids[1].kids[0].kind"),
    ],
)
def test_check_when_something_is_missing_then_its_path_is_named(message: Any, param: str) -> None:
    with pytest.raises(Invalid) as caught:
        _check(message, PLAN, "")
    assert caught.value.param == param
