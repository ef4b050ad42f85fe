"""What clients are told when a request fails: one JSON shape, one table from gRPC to HTTP.

The shape serves the documented API and OpenAI clients alike. Nothing here knows a single RPC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import grpc
import orjson
from google.rpc import error_details_pb2, status_pb2

TYPES: Mapping[int, str] = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "Timeout",
    409: "Conflict",
    410: "Gone",
    413: "PayloadTooLarge",
    415: "UnsupportedMediaType",
    422: "BadRequest",
    429: "TooManyRequests",
    500: "InternalError",
    502: "ExternalServiceError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
"""The `type` of each HTTP status."""

_DETAILS_KEY = "grpc-status-details-bin"

_BY_CODE: Mapping[grpc.StatusCode, tuple[int, str, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_argument", "The request is invalid"),
    grpc.StatusCode.OUT_OF_RANGE: (400, "invalid_argument", "The request is out of range"),
    grpc.StatusCode.FAILED_PRECONDITION: (400, "failed_precondition", "The request does not fit the present state"),
    grpc.StatusCode.UNAUTHENTICATED: (401, "unauthenticated", "An API key is needed"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "permission_denied", "The key may not do this"),
    grpc.StatusCode.NOT_FOUND: (404, "not_found", "There is no such thing"),
    grpc.StatusCode.ALREADY_EXISTS: (409, "already_exists", "It exists already"),
    grpc.StatusCode.ABORTED: (409, "stale", "It has changed meanwhile"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "too_many_requests", "A limit is reached"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_unavailable", "The MemoryOS server cannot be reached"),
    grpc.StatusCode.CANCELLED: (503, "server_unavailable", "The MemoryOS server ended the call"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "deadline_exceeded", "The call ran out of time"),
}
_INTERNAL = (500, "internal", "Something failed inside; the request id finds it in the log")

# Where one gRPC code stands for two HTTP statuses, the reason decides.
_BY_REASON: Mapping[str, int] = {
    "SESSION_EXPIRED": 410,
    "TOO_LARGE": 413,
    "UPSTREAM_FAILED": 502,
    "METHOD_NOT_ALLOWED": 405,
    "UNSUPPORTED_MEDIA_TYPE": 415,
}


class BridgeError(Exception):
    """A request fails and the client is told so.

    Attributes:
        status: The HTTP status.
        message: One sentence for people.
        code: A lower-case reason.
        param: The field at fault, dotted, or None.
        details: More for people, or None.
        headers: Headers of the answer, besides the usual.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        details: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keeps what the client is told."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.details = details
        self.headers = dict(headers or {})

    def body(self, *, success_false: bool = False) -> bytes:
        """The JSON body; `success_false` adds `"success":false` beside `"error"`."""
        error = {
            "type": TYPES.get(self.status, "InternalError" if self.status >= 500 else "BadRequest"),
            "message": self.message,
            "details": self.details,
            "code": self.code,
            "param": self.param,
        }
        return orjson.dumps({"success": False, "error": error} if success_false else {"error": error})


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


class Cut(Exception):
    """A stream failed after its first byte: the connection is aborted, so that no part passes for the whole."""

    def __init__(self, cause: BridgeError) -> None:
        """Keeps what failed, for the log."""
        super().__init__(cause.message)
        self.cause = cause


def invalid(message: str, param: str | None = None) -> BridgeError:
    """A 400 that names the field at fault."""
    return BridgeError(400, message, "invalid_argument", param=param)


def internal() -> BridgeError:
    """The 500 of a crash; it tells nothing."""
    return BridgeError(_INTERNAL[0], _INTERNAL[2], _INTERNAL[1])


def unreachable(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server was not reached: UNAVAILABLE without details, which our server never sends."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and _status(error) is None


def from_rpc(error: grpc.aio.AioRpcError) -> BridgeError:
    """The HTTP error of a failed call."""
    code = error.code()
    rich = _status(error)
    status, reason, message = _BY_CODE.get(code, _INTERNAL)
    if rich is None:
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Without details it is gRPC's own limit on the size of a message.
            return BridgeError(413, "The message is too large", "too_large")
        headers = {"Retry-After": "1"} if status == 503 else {}
        return BridgeError(status, message, reason, headers=headers)
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    for detail in rich.details:
        for target in (info, retry, bad):
            detail.Unpack(target)
    meta = info.metadata
    headers = {}
    if retry.HasField("retry_delay"):
        delay = retry.retry_delay
        headers["Retry-After"] = str(max(1, math.ceil(delay.seconds + delay.nanos / 1e9)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if info.reason:
        reason = info.reason.lower()
        status = _BY_REASON.get(info.reason, status)
    upstream = meta.get("upstream_status", "")
    if info.reason == "UPSTREAM_REJECTED" and upstream.isdigit() and 400 <= int(upstream) <= 499:
        status = int(upstream)
        reason = meta.get("upstream_code") or reason
    param = meta.get("param") or (bad.field_violations[0].field if bad.field_violations else None)
    return BridgeError(
        status, rich.message or message, reason, param=param, details=meta.get("details") or None, headers=headers
    )


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None
