"""Any RPC of a running system, called over gRPC and over HTTP with a request in the names and values of REST."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import grpc
from google.protobuf.message import Message

from memoryos import schema
from memoryos.schema import Method
from memoryos_bridge.codec import Codec
from tests.system import System

METHODS = {method.name: method for method in schema.load()}
"""Every RPC by its name."""

_codec = Codec()


@dataclass
class Outcome:
    """How a call over gRPC ended.

    Attributes:
        code: The status.
        message: What an error says.
        answers: What came, as many messages as there were.
        trailers: What came with the end, as text.
    """

    code: grpc.StatusCode
    message: str = ""
    answers: list[Message] = field(default_factory=list)
    trailers: str = ""


def message_of(method: Method, request: Mapping[str, Any]) -> Message:
    """A request as gRPC has it."""
    message = method.request_class()
    _codec.of(method.descriptor.input_type).fill(message, dict(request))
    mask = getattr(message, "update_mask", None)
    if mask is not None:
        mask.paths.extend(name for name in request if name not in method.routes[0].parameters)
    return message


def over_grpc(
    channel: grpc.Channel, method: Method, request: Mapping[str, Any], headers: Mapping[str, str], seconds: float = 30
) -> Outcome:
    """Calls an RPC."""
    make = channel.unary_stream if method.streams else channel.unary_unary
    call = make(
        method.path,
        request_serializer=method.request_class.SerializeToString,
        response_deserializer=method.response_class.FromString,
    )
    metadata = [(name.lower(), value) for name, value in headers.items()]
    try:
        answer = call(message_of(method, request), metadata=metadata, timeout=seconds)
        return Outcome(grpc.StatusCode.OK, answers=list(answer) if method.streams else [answer])
    except grpc.RpcError as error:
        # How much room a limit leaves is another number each time.
        trailers = [one for one in error.trailing_metadata() or () if one[0] != "ratelimit"]
        return Outcome(error.code(), error.details() or "", trailers=repr(trailers))


def over_http(
    system: System, method: Method, request: Mapping[str, Any], headers: Mapping[str, str], path: str = ""
) -> tuple[int, Any]:
    """Calls the first route of an RPC, or posts to a path; the status and the answer."""
    body: dict[str, Any] | None = dict(request)
    verb = "POST"
    if not path:
        route = method.routes[0]
        verb, path = route.verb, route.template
        for name in route.parameters:
            path = path.replace(f"{{{name}}}", quote(str((body or {}).pop(name)), safe=""))
        if not route.body:
            path += f"?{urlencode(body)}" if body else ""
            body = None
    status, answer, _ = system.call(verb, path, body, headers)
    return status, answer
