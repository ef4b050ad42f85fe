"""What can go wrong, in the words of the domain.

One mapper (`rpc.status`) turns a Fault into a gRPC status; nothing else does. `reason` is a short name of
`memoryos.v1.ErrorReason` in lower case, so that the domain needs no generated code. Messages and metadata never carry
content, keys or stack traces.
"""

from __future__ import annotations

from collections.abc import Mapping


class Fault(Exception):
    """A failure that the caller is told about.

    Attributes:
        message: One sentence for people.
        reason: `ErrorReason` in lower snake case without its prefix.
        details: More for people, or None.
        param: The field at fault, dotted, or None.
        retry_after: Seconds after which trying again makes sense, or None.
        metadata: What is dynamic in the message, again, for machines.
    """

    reason = "internal"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        details: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Keeps what the caller is told."""
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.details = details
        self.param = param
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})


class Invalid(Fault):
    """The request is wrong; `param` names the field (400)."""

    reason = "invalid_argument"


def unknown_model(name: str, here: str = "") -> Invalid:
    """The fault of a model that nobody serves; `here` says what is served instead."""
    details = f"Model '{name}' is not supported{here}"
    return Invalid("Invalid model name", reason="model_not_found", details=details, param="model")


class Unauthenticated(Fault):
    """No key, or one we do not know (401)."""

    reason = "unauthenticated"


class Forbidden(Fault):
    """The key may not do this (403)."""

    reason = "permission_denied"


class NotFound(Fault):
    """There is no such thing, or it is somebody else's (404)."""

    reason = "not_found"


class Exists(Fault):
    """The id is taken, or was used for other content (409)."""

    reason = "already_exists"


class Stale(Fault):
    """The change builds on something that has changed since (409)."""

    reason = "stale"


class Expired(Fault):
    """A session is over (410)."""

    reason = "session_expired"


class TooLarge(Fault):
    """The request is over a size limit (413)."""

    reason = "too_large"


class TooMany(Fault):
    """A rate limit is reached; `retry_after` says for how long (429)."""

    reason = "too_many_requests"


class Upstream(Fault):
    """An LLM provider or connector failed (502)."""

    reason = "upstream_failed"


class UpstreamRejected(Fault):
    """An LLM provider refused the request.

    Attributes:
        status: The provider's HTTP status, one of 400, 404, 413, 422, 429.
        code: The provider's own `error.code`, or None.
    """

    reason = "upstream_rejected"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Keeps what the provider said."""
        super().__init__(message, param=param, retry_after=retry_after, metadata={"upstream_status": str(status)})
        self.status = status
        self.code = code


class BackendDown(Fault):
    """A store does not answer (503)."""

    reason = "store_unavailable"


class DeadlineExceeded(Fault):
    """The call ran out of time (504)."""

    reason = "deadline_exceeded"
