"""Fault -> google.rpc.Status: the one place that knows how the domain's failures look on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from memoryos_server.domain.core import faults
from memoryos_server.domain.core.text import sound

DOMAIN = "memoryos"
"""The `domain` of every ErrorInfo."""

INTERNAL_MESSAGE = "Internal error; the request id finds it in the log"
"""All that a caller is told of a fault of ours."""

_CODES: Mapping[type[faults.Fault], grpc.StatusCode] = {
    faults.Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    faults.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    faults.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    faults.NotFound: grpc.StatusCode.NOT_FOUND,
    faults.Exists: grpc.StatusCode.ALREADY_EXISTS,
    faults.Stale: grpc.StatusCode.ABORTED,
    faults.Expired: grpc.StatusCode.FAILED_PRECONDITION,
    faults.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    faults.TooMany: grpc.StatusCode.RESOURCE_EXHAUSTED,
    faults.Upstream: grpc.StatusCode.UNAVAILABLE,
    faults.BackendDown: grpc.StatusCode.UNAVAILABLE,
    faults.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_UPSTREAM_CODES: Mapping[int, grpc.StatusCode] = {
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

# gRPC clients take about 8 KiB of trailers by default. The message travels twice: percent-encoded, and in base64.
_MESSAGE_COST = 2500
_VALUE_COST = 1000


@dataclass(frozen=True, slots=True)
class Ending(grpc.Status):
    """How a call ends, as gRPC takes it."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def code_of(fault: faults.Fault) -> grpc.StatusCode:
    """The gRPC code of a fault; INTERNAL for a class that the table does not know."""
    if isinstance(fault, faults.UpstreamRejected):
        return _UPSTREAM_CODES.get(fault.status, grpc.StatusCode.INVALID_ARGUMENT)
    for cls in type(fault).__mro__:
        if cls in _CODES:
            return _CODES[cls]
    return grpc.StatusCode.INTERNAL


def to_status(fault: faults.Fault) -> status_pb2.Status:
    """The status of a fault: message, one ErrorInfo, and BadRequest and RetryInfo where they apply.

    Long texts are cut to what fits into trailers. A plain `Fault` tells the caller nothing but INTERNAL.
    """
    code = code_of(fault)
    if code is grpc.StatusCode.INTERNAL:
        return internal()
    message = _clip(fault.message, _MESSAGE_COST)
    metadata = dict(fault.metadata)
    if fault.param:
        metadata["param"] = fault.param
    if fault.details:
        metadata["details"] = fault.details
    if isinstance(fault, faults.UpstreamRejected):
        metadata["upstream_status"] = str(fault.status)
        if fault.code:
            metadata["upstream_code"] = fault.code
    details = [_info(fault.reason, {k: _clip(v, _VALUE_COST) for k, v in metadata.items()})]
    if isinstance(fault, faults.Invalid) and fault.param:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_clip(fault.param, _VALUE_COST), description=_clip(fault.message, _VALUE_COST)
        )
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if fault.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(max(0, round(fault.retry_after * 1e9)))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=_number(code), message=message, details=details)


def internal() -> status_pb2.Status:
    """The status of a fault of ours: it says nothing."""
    return status_pb2.Status(
        code=_number(grpc.StatusCode.INTERNAL), message=INTERNAL_MESSAGE, details=[_info("internal", {})]
    )


def _number(code: grpc.StatusCode) -> int:
    return int(code.value[0])


def _info(reason: str, metadata: Mapping[str, str]) -> AnyMessage:
    return _pack(error_details_pb2.ErrorInfo(reason=reason.upper(), domain=DOMAIN, metadata=metadata))


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _clip(text: str, most: int) -> str:
    """The text, cut where its percent-encoded form would pass `most` bytes."""
    text = sound(text)
    if len(text) * 12 <= most:
        return text
    cost = 0
    for index, char in enumerate(text):
        cost += 1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode())
        if cost > most - 9:
            return text[:index] + "…"
    return text
