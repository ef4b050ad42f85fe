"""The protos, read once: what every RPC says of itself.

Server, bridge, client, OpenAPI and metric labels all work from these records; none keeps a list of methods. `load` refuses
what cannot be served, so that a mistake in a proto stops the start and not a user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from google.api import annotations_pb2, field_behavior_pb2, http_pb2
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor, MethodDescriptor
from google.protobuf.message import Message

from memoryos.v1 import (
    admin_service_pb2,
    audit_service_pb2,
    chat_service_pb2,
    consent_service_pb2,
    defense_service_pb2,
    embedding_service_pb2,
    memories_service_pb2,
    memory_service_pb2,
    options_pb2,
    privacy_service_pb2,
    queue_service_pb2,
    segment_service_pb2,
    system_service_pb2,
    usage_service_pb2,
)

FILES: tuple[FileDescriptor, ...] = (
    system_service_pb2.DESCRIPTOR,
    chat_service_pb2.DESCRIPTOR,
    memory_service_pb2.DESCRIPTOR,
    memories_service_pb2.DESCRIPTOR,
    segment_service_pb2.DESCRIPTOR,
    privacy_service_pb2.DESCRIPTOR,
    queue_service_pb2.DESCRIPTOR,
    embedding_service_pb2.DESCRIPTOR,
    usage_service_pb2.DESCRIPTOR,
    admin_service_pb2.DESCRIPTOR,
    consent_service_pb2.DESCRIPTOR,
    audit_service_pb2.DESCRIPTOR,
    defense_service_pb2.DESCRIPTOR,
)
"""The protos whose services are served."""

DEFAULT_BODY_BYTES = 10 * 1024 * 1024

# These modules ship no types.
_HTTP: Any = annotations_pb2.http
_BEHAVIOR: Any = field_behavior_pb2.field_behavior

_VERBS = ("get", "put", "post", "delete", "patch")
_SEGMENT = re.compile(r"\{([a-z_][a-z0-9_]*)\}|[A-Za-z0-9._~-]+")


class SchemaError(ValueError):
    """A proto cannot be served; the message names the RPC and says why."""


@dataclass(frozen=True)
class Route:
    """An RPC's HTTP route.

    Attributes:
        verb: Upper case.
        template: Such as `/v1/memory/{memory_id}/history`.
        parameters: The names in braces; fields of the request.
        body: `*`: every field not in the path comes from the body; a name: the body is that field; "": query only.
        response_body: The field that is the whole answer, or "".
    """

    verb: str
    template: str
    parameters: tuple[str, ...]
    body: str
    response_body: str

    @property
    def sort_key(self) -> tuple[tuple[int, str], ...]:
        """Sorts literal segments before parameters, so that `/x/saved` is tried before `/x/{id}`."""
        return tuple((1 if part.startswith("{") else 0, part) for part in self.template.split("/"))


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the audit log keeps of calls of an RPC.

    Attributes:
        event_type: Such as `memory.add`; "": nothing is kept.
        resource: A template over the request's fields that names what was touched, such as `memory/{memory_id}`.
        is_change: The call is answered once it is recorded; else it may be recorded late.
    """

    event_type: str
    resource: str
    is_change: bool


@dataclass(frozen=True)
class Method:
    """An RPC and what it says of itself.

    Attributes:
        descriptor: The method's descriptor.
        policy: Permission, deadline, audit.
        rest: The shape of the JSON answer.
        routes: HTTP routes; empty for gRPC only.
        idempotency: `NO_SIDE_EFFECTS`, `IDEMPOTENT` or `` (unknown).
    """

    descriptor: MethodDescriptor
    policy: options_pb2.Policy
    rest: options_pb2.Rest
    routes: tuple[Route, ...]
    idempotency: str

    @cached_property
    def name(self) -> str:
        """Such as `AddMemory`."""
        return str(self.descriptor.name)

    @property
    def service(self) -> str:
        """Such as `memoryos.v1.MemoryService`."""
        return str(self.descriptor.containing_service.full_name)

    @cached_property
    def path(self) -> str:
        """Such as `/memoryos.v1.MemoryService/AddMemory`."""
        return f"/{self.service}/{self.name}"

    @cached_property
    def permission(self) -> str:
        """The needed permission as keys hold it, such as `memory.read`; `public` needs none."""
        short = options_pb2.Permission.Name(self.policy.permission).removeprefix("PERMISSION_").lower()
        return short.replace("memory_", "memory.")

    @cached_property
    def whose(self) -> str:
        """Whose data a call touches, such as `user`; `unspecified` if the proto does not say."""
        return options_pb2.Whose.Name(self.policy.whose).removeprefix("WHOSE_").lower()

    @cached_property
    def deadline(self) -> float:
        """The default and longest deadline, in seconds."""
        return float(self.policy.default_deadline_seconds)

    @property
    def streams(self) -> bool:
        """Whether the server answers with a stream."""
        return bool(self.descriptor.server_streaming)

    @property
    def retryable(self) -> bool:
        """Whether a client may call again after UNAVAILABLE."""
        return self.idempotency != ""

    @cached_property
    def max_body_bytes(self) -> int:
        """The largest request body over HTTP."""
        return int(self.rest.max_body_bytes) or DEFAULT_BODY_BYTES

    @cached_property
    def recorded(self) -> Recorded:
        """What the audit log keeps of a call."""
        audit = self.policy.audit
        return Recorded(audit.event_type, audit.resource, audit.kind == options_pb2.AUDIT_KIND_CHANGE)

    @cached_property
    def names_user(self) -> bool:
        """Whether a request can name whose data it is about."""
        field = self.descriptor.input_type.fields_by_name.get("user_id")
        return field is not None and not field.is_repeated

    @cached_property
    def made_ids(self) -> tuple[str, ...]:
        """The request's fields that make a repeated call recognisable."""
        fields = self.descriptor.input_type.fields
        return tuple(f.name for f in fields if f.GetOptions().Extensions[options_pb2.field].made_id)

    @cached_property
    def request_class(self) -> type[Message]:
        """The request's message class."""
        return message_factory.GetMessageClass(self.descriptor.input_type)

    @cached_property
    def response_class(self) -> type[Message]:
        """The response's message class."""
        return message_factory.GetMessageClass(self.descriptor.output_type)


def required_fields(message: Descriptor) -> Iterable[Any]:
    """The fields of a message marked `(google.api.field_behavior) = REQUIRED`."""
    for field in message.fields:
        if field_behavior_pb2.REQUIRED in field.GetOptions().Extensions[_BEHAVIOR]:
            yield field


def load(files: Sequence[FileDescriptor] = FILES) -> tuple[Method, ...]:
    """Every RPC of every service in `files`, in the order of the protos.

    Raises:
        SchemaError: An RPC without permission or deadline, a client-streaming RPC, a route template that cannot be served,
            or two RPCs with one route.
    """
    methods = [_method(m) for file in files for service in file.services_by_name.values() for m in service.methods]
    taken: dict[tuple[str, str], str] = {}
    for method in methods:
        for route in method.routes:
            shape = (route.verb, re.sub(r"\{[^}]*\}", "{}", route.template))
            if shape in taken:
                raise SchemaError(f"{method.path}: {route.verb} {route.template} is also the route of {taken[shape]}")
            taken[shape] = method.path
    return tuple(methods)


def _method(descriptor: MethodDescriptor) -> Method:
    where = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    options = descriptor.GetOptions()
    policy = options.Extensions[options_pb2.policy]
    rest = options.Extensions[options_pb2.rest]
    if policy.permission == options_pb2.PERMISSION_UNSPECIFIED:
        raise SchemaError(f"{where} has no permission; say PERMISSION_PUBLIC if it needs none")
    if policy.default_deadline_seconds <= 0:
        raise SchemaError(f"{where} has no default_deadline_seconds")
    if descriptor.client_streaming:
        raise SchemaError(f"{where} streams requests, which no bridge or client here can send")
    level = descriptor_pb2.MethodOptions.IdempotencyLevel.Name(options.idempotency_level)
    routes: tuple[Route, ...] = ()
    if options.HasExtension(_HTTP):
        rule: http_pb2.HttpRule = options.Extensions[_HTTP]
        routes = tuple(_route(descriptor, r, where) for r in (rule, *rule.additional_bindings))
    _check_rest(descriptor, rest, routes, where)
    return Method(descriptor, policy, rest, routes, "" if level == "IDEMPOTENCY_UNKNOWN" else level)


def _route(descriptor: MethodDescriptor, rule: http_pb2.HttpRule, where: str) -> Route:
    verb = rule.WhichOneof("pattern")
    if verb not in _VERBS:
        raise SchemaError(f"{where}: its route has the verb {verb!r}; one of {', '.join(_VERBS)} can be served")
    template = getattr(rule, verb)
    parameters = []
    if not template.startswith("/"):
        raise SchemaError(f"{where}: the route {template!r} does not start with /")
    for part in template[1:].split("/"):
        match = _SEGMENT.fullmatch(part)
        if match is None:
            raise SchemaError(f"{where}: the route {template!r} has the segment {part!r}, which cannot be served")
        if match[1]:
            parameters.append(match[1])
    fields = descriptor.input_type.fields_by_name
    for name in parameters:
        if name not in fields or fields[name].message_type is not None or fields[name].is_repeated:
            raise SchemaError(
                f"{where}: the route names {{{name}}}, which is no plain field of {descriptor.input_type.name}"
            )
    if len(set(parameters)) != len(parameters):
        raise SchemaError(f"{where}: the route {template!r} names a parameter twice")
    if rule.body not in ("", "*") and rule.body not in fields:
        raise SchemaError(f"{where}: body names {rule.body!r}, which is no field of {descriptor.input_type.name}")
    if rule.response_body and rule.response_body not in descriptor.output_type.fields_by_name:
        raise SchemaError(
            f"{where}: response_body names {rule.response_body!r}, which is no field of {descriptor.output_type.name}"
        )
    return Route(verb.upper(), template, tuple(parameters), rule.body, rule.response_body)


def _check_rest(descriptor: MethodDescriptor, rest: options_pb2.Rest, routes: tuple[Route, ...], where: str) -> None:
    if descriptor.server_streaming and routes and not (rest.stream or rest.custom):
        raise SchemaError(f"{where} streams over a route and does not say which field (rest.stream)")
    if rest.stream and not descriptor.server_streaming:
        raise SchemaError(f"{where}: rest.stream needs a server-streaming RPC")
    for named in rest.stream:
        message: Any = descriptor.output_type
        *parents, last = named.split(".")
        for name in parents:
            if name not in message.fields_by_name or message.fields_by_name[name].message_type is None:
                raise SchemaError(f"{where}: rest.stream names {named!r}, which is no field of the response")
            message = message.fields_by_name[name].message_type
        field = message.fields_by_name.get(last)
        if field is None or not (field.is_repeated or field.type == field.TYPE_STRING):
            raise SchemaError(f"{where}: rest.stream names {named!r}, which is no repeated field and no string")
    for name in (*(s.field for s in rest.status_when), *(v.field for v in rest.when_unreachable)):
        if name not in descriptor.output_type.fields_by_name:
            raise SchemaError(f"{where}: rest names {name!r}, which is no field of {descriptor.output_type.name}")
