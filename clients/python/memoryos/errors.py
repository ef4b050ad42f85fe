"""What a call can fail with, as exceptions.

The server says why in one `google.rpc.ErrorInfo` (domain `memoryos`, reason from `memoryos.v1.ErrorReason`). `from_rpc`
reads it, so that callers catch classes and compare `reason`, never messages. What comes from the network alone (nobody
listens, time is up) has no ErrorInfo and gets the class of its gRPC code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

DOMAIN = "memoryos"
"""The domain of our ErrorInfo."""


class MemoryOSError(Exception):
    """A call failed.

    Attributes:
        message: One sentence for people.
        code: The gRPC code.
        reason: `memoryos.v1.ErrorReason` in lower case, such as `event_id_conflict`; "" if the server did not say.
        param: The field at fault, or None.
        details: More for people, or None.
        retry_after: Seconds after which trying again makes sense, or None.
        request_id: Finds the call in the server's log, or "".
        metadata: All that the server said in ErrorInfo, such as `upstream_status`.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        param: str | None = None,
        details: str | None = None,
        retry_after: float | None = None,
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Keeps what the server said."""
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.param = param
        self.details = details
        self.retry_after = retry_after
        self.request_id = request_id
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        more = [f"{name} {value}" for name, value in (("param", self.param), ("request", self.request_id)) if value]
        return f"{self.message} [{', '.join([self.reason or self.code.name.lower(), *more])}]"


class InvalidArgument(MemoryOSError):
    """The request is wrong; `param` names the field."""


class Unauthenticated(MemoryOSError):
    """No key, or one that is not known or has expired."""


class PermissionDenied(MemoryOSError):
    """The key may not do this."""


class NotFound(MemoryOSError):
    """There is no such thing, or it is somebody else's."""


class Conflict(MemoryOSError):
    """The id is taken, was used for other content, or the change builds on an old version."""


class SessionExpired(MemoryOSError):
    """A session is over."""


class TooLarge(MemoryOSError):
    """The request is over a size limit."""


class TooManyRequests(MemoryOSError):
    """A limit is reached; `retry_after` says for how long."""


class UpstreamError(MemoryOSError):
    """The LLM provider failed, or refused the request."""


class Unavailable(MemoryOSError):
    """The server, or a store it needs, cannot be reached."""


class DeadlineExceeded(MemoryOSError):
    """The call ran out of time."""


class Cancelled(MemoryOSError):
    """The call was cancelled."""


class InternalError(MemoryOSError):
    """A fault of the server; `request_id` finds it in the log."""


_BY_REASON: Mapping[str, type[MemoryOSError]] = {
    "invalid_argument": InvalidArgument,
    "unauthenticated": Unauthenticated,
    "key_expired": Unauthenticated,
    "permission_denied": PermissionDenied,
    "ip_banned": PermissionDenied,
    "host_not_allowed": PermissionDenied,
    "not_found": NotFound,
    "method_not_allowed": InvalidArgument,
    "already_exists": Conflict,
    "event_id_conflict": Conflict,
    "stale": Conflict,
    "last_admin_key": Conflict,
    "session_expired": SessionExpired,
    "too_large": TooLarge,
    "unsupported_media_type": InvalidArgument,
    "too_many_requests": TooManyRequests,
    "model_not_found": InvalidArgument,
    "upstream_failed": UpstreamError,
    "upstream_rejected": UpstreamError,
    "store_unavailable": Unavailable,
    "server_unavailable": Unavailable,
    "deadline_exceeded": DeadlineExceeded,
    "internal": InternalError,
    "cancelled": Cancelled,
    "consent_withdrawn": PermissionDenied,
    "injection_suspected": InvalidArgument,
}

_BY_CODE: Mapping[grpc.StatusCode, type[MemoryOSError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooManyRequests,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
}


def from_rpc(error: Any, request_id: str = "") -> MemoryOSError:
    """The exception for a failed call.

    Args:
        error: What grpc raised, a synchronous call or `grpc.aio.AioRpcError`.
        request_id: The id the call was sent with; the server's own, if it answered one, wins.
    """
    code = error.code() or grpc.StatusCode.UNKNOWN
    reason, told, retry_after = "", {}, None
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            if info.domain == DOMAIN:
                reason, told = info.reason.lower(), dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    for name, value in error.initial_metadata() or ():
        if name == "x-request-id":
            request_id = value if isinstance(value, str) else value.decode()
    made = _BY_REASON.get(reason) or _BY_CODE.get(code, MemoryOSError)
    return made(
        error.details() or code.name.lower().replace("_", " "),
        code=code,
        reason=reason,
        param=told.get("param"),
        details=told.get("details"),
        retry_after=retry_after,
        request_id=request_id,
        metadata=told,
    )


def _details(error: Any) -> list[Any]:
    """The details of a status; none where it carries none or they do not belong to it."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # the trailer is damaged, or contradicts code or message: trust neither
        return []
    return list(status.details) if status is not None else []
