"""The interceptors, and their order: written here once, with the reason beside each."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status

from memoryos import tracing
from memoryos.schema import Method
from memoryos.tracing import NO_SPANS, Spans
from memoryos_server.domain.core.faults import BackendDown, DeadlineExceeded, Fault, TooMany
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.defense.guard import LimitReached
from memoryos_server.rpc import status
from memoryos_server.rpc.audit import Audit
from memoryos_server.rpc.auth import Auth
from memoryos_server.rpc.defense import Door, headers
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.rpc.required import Required
from memoryos_server.rpc.state import Serving
from memoryos_server.rpc.status import Ending
from memoryos_server.rpc.wrap import (
    DEGRADED_HEADER,
    REQUEST_ID_HEADER,
    Around,
    Before,
    Call,
    compose,
    left_is_cancelled,
)

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

BUSY_SECONDS = 1.0
"""When a caller who was refused for lack of room should come again."""

_LEVELS = {
    grpc.StatusCode.INTERNAL: "error",
    grpc.StatusCode.UNKNOWN: "error",
    grpc.StatusCode.UNAVAILABLE: "warning",
    grpc.StatusCode.DEADLINE_EXCEEDED: "warning",
}


def standard(
    methods: Iterable[Method],
    *,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    serving: Serving,
    auth: Auth,
    audit: Audit,
    door: Door | None = None,
    max_calls: int = 0,
    spans: Spans = NO_SPANS,
) -> Around:
    """The server's interceptors around one another, outermost first."""
    return compose(
        # First, because it must see everything: what the others refuse is logged and counted like the rest.
        Telemetry(metrics, logger),
        # Inside of what ids the trace for the log, around all that takes time. Absent unless spans are made.
        *((Traces(spans),) if spans.on else ()),
        # Outside of all that raises faults, so that each has the same way onto the wire.
        Faults(logger),
        # Before all that costs anything: a server that has too much to do must be able to say so.
        Admission(max_calls, metrics),
        # Bounds everything that may wait: the key's lookup, the handler, and the reader of a stream.
        deadline,
        # Before auth, because a refusal while a store is down is a degraded answer too.
        Before(Degraded(serving)),
        # Before a key is looked up in a store; who is known already is not limited here. Who is banned did not come so far.
        *((Before(door.address),) if door else ()),
        # Outside of auth, because denials are recorded.
        audit.record,
        # Before the request is parsed: who may not call costs as little as possible.
        Before(door.auth if door else auth),
        # After auth, so that nobody learns of fields by trying; here the request is parsed.
        Before(Required(methods)),
        # Last, because it needs caller and request; the use case finds the draft and may take it.
        Before(audit.draft),
    )


_OURS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that are a failure of the server's, as OpenTelemetry has it; others are the caller's."""


class Telemetry:
    """Gives the call its id, and leaves one line in the log and three metrics behind."""

    def __init__(self, metrics: Metrics, logger: FilteringBoundLogger) -> None:
        """Keeps where to write."""
        self._metrics = metrics
        self._logger = logger

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Measures a call."""
        sent = call.metadata.get(REQUEST_ID_HEADER, "")
        call.request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid7()
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        if parent := call.metadata.get(tracing.TRACEPARENT):
            hop = tracing.received(parent, call.metadata.get(tracing.TRACESTATE, ""))
            if hop is not None:
                tracing.enter(hop)  # until the call's task ends
                structlog.contextvars.bind_contextvars(trace_id=hop.trace_id)
        method = call.method.path
        in_flight = self._metrics.in_flight.labels(method)
        in_flight.inc()
        started = time.perf_counter()
        try:
            yield
        except asyncio.CancelledError:
            left = call.context.time_remaining()
            late = left is not None and left <= 0
            call.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        finally:
            seconds = time.perf_counter() - started
            in_flight.dec()
            self._metrics.requests.labels(method, call.code.name).inc()
            self._metrics.duration.labels(method).observe(seconds)
            self._write(call, seconds)

    def _write(self, call: Call, seconds: float) -> None:
        write = getattr(self._logger, _LEVELS.get(call.code, "info"))
        reason = {"reason": call.reason} if call.reason else {}
        write(
            "rpc",
            method=call.method.path,
            code=call.code.name,
            duration_ms=round(seconds * 1000, 3),
            request_id=call.request_id,
            tenant=call.caller.tenant_id if call.caller else "",
            principal=call.caller.key_id if call.caller else "",
            peer=call.address,
            bytes_in=call.bytes_in,
            bytes_out=call.bytes_out,
            degraded=call.degraded,
            **reason,
        )


class Traces:
    """Makes a span of the call."""

    def __init__(self, spans: Spans) -> None:
        """Keeps who makes spans."""
        self._spans = spans

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Measures a call."""
        name = call.method.path.lstrip("/")
        with self._spans.server(name, {"rpc.system.name": "grpc", "rpc.method": name}) as span:
            if (hop := tracing.current()) is not None:
                structlog.contextvars.bind_contextvars(trace_id=hop.trace_id)
            code = grpc.StatusCode.CANCELLED
            try:
                yield
                code = call.code
            except grpc.aio.AbortError:
                code = call.code
                raise
            finally:
                span.note({"rpc.response.status_code": code.name})
                if code in _OURS:
                    span.fail(code.name)
                else:
                    span.excuse()


class Faults:
    """Turns what handlers raise into statuses. A cancellation stays one."""

    def __init__(self, logger: FilteringBoundLogger) -> None:
        """Keeps where faults of ours are logged."""
        self._logger = logger

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Ends a failed call with its status."""
        try:
            yield
        except grpc.aio.AbortError:
            raise  # it has its status
        except Fault as fault:
            code = status.code_of(fault)
            if code is grpc.StatusCode.INTERNAL:
                self._logger.error("rpc_failed", method=call.method.path, exc_info=fault)
            call.reason = fault.reason
            if isinstance(fault, LimitReached):
                call.trailers.update(headers(fault.standing))
            call.degraded |= isinstance(fault, BackendDown)  # a call may notice before the probes do
            await self._end(call, code, status.to_status(fault))
        except Exception as error:
            self._logger.error("rpc_failed", method=call.method.path, exc_info=error)
            call.reason = "internal"
            await self._end(call, grpc.StatusCode.INTERNAL, status.internal())

    @staticmethod
    async def _end(call: Call, code: grpc.StatusCode, answer: status_pb2.Status) -> None:
        call.code = code
        await call.begin()  # errors carry the request id too
        ending = rpc_status.to_status(answer)
        if call.degraded:
            # Behind it, too: of a stream that fails at once, gRPC's client may see the end before the initial metadata.
            ending = Ending(ending.code, ending.details, (*ending.trailing_metadata, DEGRADED_HEADER))
        if call.trailers:
            told = (*ending.trailing_metadata, *call.trailers.items())
            ending = Ending(ending.code, ending.details, told)
        with left_is_cancelled():
            await call.context.abort_with_status(ending)


class Admission:
    """Refuses calls while as many are under way as may be. Probes and metrics are always let in."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        """Keeps the bound.

        Args:
            most: Calls at once; 0 is any number.
            metrics: Counts what is refused.
        """
        self._most = most
        self._metrics = metrics
        self._under_way = 0

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Lets a call in.

        Raises:
            TooMany: There is no room.
        """
        if call.method.permission == "public":
            yield
            return
        if 0 < self._most <= self._under_way:
            self._metrics.refused.labels("calls").inc()
            raise TooMany("The server has too much to do", retry_after=BUSY_SECONDS, metadata={"limit": "calls"})
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


@asynccontextmanager
async def deadline(call: Call) -> AsyncIterator[None]:
    """Ends a call at the method's deadline, if the client's own is not earlier.

    At the client's, gRPC cancels the handler by itself; a timer of ours beside it would cancel a second time, and so break
    into the handler's `finally`.

    Raises:
        DeadlineExceeded: The time is over; the handler's `finally` blocks have run.
    """
    left = call.context.time_remaining()
    if left is not None and left <= call.method.deadline:
        yield
        return
    timer = asyncio.timeout(call.method.deadline)
    try:
        async with timer:
            yield
    except TimeoutError:
        if not timer.expired():
            raise
        raise DeadlineExceeded("The call ran out of time") from None


class Degraded:
    """Marks answers given while a store is down."""

    def __init__(self, serving: Serving) -> None:
        """Keeps who knows."""
        self._serving = serving

    def __call__(self, call: Call) -> None:
        """Marks a call."""
        call.degraded = self._serving.state.degraded
