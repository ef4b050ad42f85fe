"""What is recorded of calls: the proto says what, `domain.core.audit` how, this module when.

A use case whose store call is atomic takes the draft, so that change and record are one write. Everything else is
written here by one task in batches: changes are waited for, reads and refusals may be up to a second late.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import Message

from memoryos_server.domain.core.audit import SYSTEM_TENANT, AuditEvent, begin, draft
from memoryos_server.domain.core.caller import DEFAULT_USER, Caller
from memoryos_server.domain.core.faults import Fault, Forbidden, Unauthenticated
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.text import MAX_ID
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Recorder
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.rpc.refusals import Refusals
from memoryos_server.rpc.wrap import Call

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_FIELD = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_BATCH = 500
_LAST_SECONDS = 0.2
"""So much of a call's time is left for its answer by what waits for room."""


class _Pending(NamedTuple):
    event: AuditEvent
    written: asyncio.Future[bool] | None


class AuditWriter:
    """Writes events in the background, in order, and at the latest when it is left.

    While the store is down events wait, up to `most`; beyond that the oldest that were not tried yet are lost, counted and
    logged. While it is only slower than they come, calls wait in `room`, and none is lost.
    """

    def __init__(
        self,
        log: Recorder,
        *,
        metrics: Metrics,
        logger: FilteringBoundLogger,
        delay: float = 0.5,
        retry: float = 0.5,
        most: int = 10_000,
        drain: float = 5.0,
        patience: float = 5.0,
    ) -> None:
        """Keeps where events go.

        Args:
            log: Where they are kept.
            metrics: Counts what is lost.
            logger: Tells what is lost.
            delay: Seconds that events nobody waits for may gather.
            retry: Seconds between attempts while the store is down.
            most: How many events may wait.
            drain: Seconds that the last events may take when it is left.
            patience: Seconds that a call waits for room at most.
        """
        self._log = log
        self._metrics = metrics
        self._logger = logger
        self._delay, self._retry, self._most, self._drain = delay, retry, most, drain
        self._patience = patience
        self._again = 0
        self._room = asyncio.Event()
        self._room.set()
        self._down = False
        self._pending: deque[_Pending] = deque()
        self._some = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closing = False
        self._refusals = Refusals(self.put)
        self._added = self._over = 0
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AuditWriter:
        self._task = asyncio.create_task(self._run(), name="audit-writer")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is None:
            return
        self._refusals.flush()
        self._closing = True
        self._some.set()
        self._hurry.set()
        late = (await asyncio.wait([self._task], timeout=self._drain))[1]
        if late:
            self._task.cancel()
            await asyncio.wait(late)
        self._lose(len(self._pending))
        while self._pending:
            self._release(self._pending.popleft(), False)

    def put(self, event: AuditEvent) -> None:
        """Has an event written soon."""
        self._add(_Pending(event, None))

    @property
    def has_room(self) -> bool:
        """Whether there is room for many more events, or no waiting would make any, because the store is down."""
        return self._room.is_set() or self._down

    async def room(self, seconds: float = math.inf) -> None:
        """Returns when there is room for many more events; at once while the store is down, when no waiting helps.

        Args:
            seconds: The longest that it may take, if that is less than the writer's own patience.
        """
        if not self.has_room:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self._patience, seconds)):
                    await self._room.wait()

    def refused(self, event: AuditEvent) -> None:
        """Has a refusal written soon; of equal ones within a minute the first, and then their number."""
        self._refusals.add(event)

    async def write(self, event: AuditEvent, seconds: float = 1.0) -> bool:
        """Has an event written at once.

        Returns:
            Whether it is durable. If not, because the store is down or slow, it stays in the queue.
        """
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._add(_Pending(event, written))
        self._hurry.set()
        done, _ = await asyncio.wait([written], timeout=seconds)
        return bool(done) and written.result()

    async def flush(self, seconds: float = 1.0) -> None:
        """Returns when all events that were put before are durable or lost; after that time at the latest."""
        if self._over >= self._added:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append((self._added, done))
        self._hurry.set()
        await asyncio.wait([done], timeout=seconds)

    def _passed(self, count: int) -> None:
        """Notes that so many events wait no more: those that came first, for they are written in order."""
        self._over += count
        for number, done in self._flushes:
            if number <= self._over and not done.done():
                done.set_result(None)
        self._flushes = [one for one in self._flushes if not one[1].done()]

    def _add(self, pending: _Pending) -> None:
        if len(self._pending) >= self._most:
            self._lose_oldest()
        self._pending.append(pending)
        self._added += 1
        self._some.set()
        if len(self._pending) >= self._most // 2 and not self._down:
            self._room.clear()
            self._hurry.set()

    def _lose_oldest(self) -> None:
        """Loses an event, but none of those that were tried: they may be written, and are only known again all together."""
        if self._again >= len(self._pending):
            self._again = 0
        item = self._pending[self._again]
        del self._pending[self._again]
        self._release(item, False)
        self._lose(1)

    def _lose(self, count: int) -> None:
        if count:
            self._passed(count)
            self._metrics.audit_dropped.inc(count)
            self._logger.error("audit_events_lost", count=count)

    async def _run(self) -> None:
        while not (self._closing and not self._pending):
            await self._some.wait()
            if not self._hurry.is_set():
                try:
                    async with asyncio.timeout(self._delay):
                        await self._hurry.wait()
                except TimeoutError:
                    pass
            self._hurry.clear()
            # One that failed is sent again as it was, so that the log can tell it is the same.
            batch = [self._pending.popleft() for _ in range(min(self._again or _BATCH, len(self._pending)))]
            self._again = 0
            if not self._pending:
                self._some.clear()
            if self._closing:
                self._some.set()
                self._hurry.set()
            elif self._pending:
                self._hurry.set()
            try:
                if batch:
                    await self._log.append([item.event for item in batch])
            except asyncio.CancelledError:
                self._pending.extendleft(reversed(batch))
                raise
            except Exception as error:
                waiting = len(batch) + len(self._pending)
                self._logger.warning("audit_write_failed", waiting=waiting, error=type(error).__name__)
                for item in batch:
                    self._release(item, False)
                self._pending.extendleft(reversed(batch))
                self._again = len(batch)
                self._some.set()
                self._down = True
                self._room.set()
                await asyncio.sleep(self._retry)
                continue
            self._down = False
            self._passed(len(batch))
            if len(self._pending) < self._most // 2:
                self._room.set()
            for item in batch:
                if item.written is not None:  # few are: most are reads
                    self._release(item, True)

    @staticmethod
    def _release(item: _Pending, written: bool) -> None:
        if item.written is not None and not item.written.done():
            item.written.set_result(written)


class Audit:
    """The interceptors `record` and `draft`."""

    def __init__(self, writer: AuditWriter) -> None:
        """Keeps who writes."""
        self._writer = writer

    def record(self, call: Call) -> _Recorded:
        """Records how a call ended, unless the use case did. Stands outside of auth, whose refusals it records."""
        return _Recorded(self._writer, call)

    @staticmethod
    def draft(call: Call) -> None:
        """Drafts the event of an audited call, for the use case to take. Stands inside of auth, after the parsing."""
        if call.method.recorded.event_type and call.caller is not None:
            present = draft()
            if present is None:
                raise AssertionError("`draft` stands outside of `record`")
            present.event = _event(call, call.caller, call.request)


class _Recorded(AbstractAsyncContextManager[None]):
    __slots__ = ("_began", "_call", "_draft", "_writer")

    def __init__(self, writer: AuditWriter, call: Call) -> None:
        self._writer = writer
        self._call = call

    async def __aenter__(self) -> None:
        self._began = monotonic()
        self._draft = begin(None)

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        draft, call = self._draft, self._call
        draft.ended = True
        if draft.taken:
            draft.late = partial(self._late, error)
            return
        if isinstance(error, (Unauthenticated, Forbidden)):
            self._writer.refused(_denied(call, draft.event, error))
            await self._room()
        elif draft.event is None:
            pass
        elif error is not None:
            self._writer.put(_failed(draft.event, error))
            if not isinstance(error, asyncio.CancelledError):
                await self._room()
        elif call.method.recorded.is_change and not draft.idle and not call.degraded:
            await self._writer.write(draft.event)
        else:
            self._writer.put(draft.event)
            if not self._writer.has_room:  # asked here, too, for most calls end so
                await self._room()

    def _late(self, error: BaseException | None, event: AuditEvent) -> None:
        self._writer.put(event if error is None else _failed(event, error))

    async def _room(self) -> None:
        """Waits for room, but leaves time to say how the call ended."""
        if self._writer.has_room:
            return
        left = self._call.method.deadline - (monotonic() - self._began)
        if (clients := self._call.context.time_remaining()) is not None:
            left = min(left, clients)
        await self._writer.room(left - _LAST_SECONDS)


def _event(call: Call, caller: Caller, request: Message) -> AuditEvent:
    method = call.method
    return AuditEvent(
        id=uuid7(),
        timestamp=utc_now(),
        event_type=method.recorded.event_type,
        tenant_id=caller.tenant_id,
        user_id=_touched(caller, str(getattr(request, "user_id")) if method.names_user else ""),  # noqa: B009
        resource=_resource(method.recorded.resource, request),
        action=method.name,
        outcome="ok",
        actor=caller.key_id,
        address=call.address,
        request_id=call.request_id,
    )


def _failed(event: AuditEvent, error: BaseException) -> AuditEvent:
    reason = error.reason if isinstance(error, Fault) else ""
    cancelled = "cancelled" if isinstance(error, asyncio.CancelledError) else "internal"
    return event._replace(outcome="failed", details=reason or cancelled)


def _denied(call: Call, drafted: AuditEvent | None, fault: Fault) -> AuditEvent:
    if drafted is not None:
        return drafted._replace(outcome="denied", details=fault.reason)
    caller = call.caller
    unknown = isinstance(fault, Unauthenticated)
    return AuditEvent(
        id=uuid7(),
        timestamp=utc_now(),
        event_type="auth.failed" if unknown else call.method.recorded.event_type or "call.denied",
        tenant_id=SYSTEM_TENANT if unknown or caller is None else caller.tenant_id,
        user_id="" if caller is None else caller.user_id or "",
        resource="",
        action=call.method.name,
        outcome="denied",
        actor="anonymous" if caller is None else caller.key_id,
        address=call.address,
        request_id=call.request_id,
        details=fault.reason,
    )


def _touched(caller: Caller, named: str) -> str:
    """Whose data the call means to touch; whether it may is found out later, and recorded as the outcome."""
    return (named or caller.named_user or caller.user_id or (DEFAULT_USER if caller.anonymous else ""))[:MAX_ID]


def _resource(template: str, request: Message) -> str:
    """The template with the request's fields; a field that is not there is left empty."""
    if "{" not in template:
        return template
    return _FIELD.sub(lambda match: str(getattr(request, match[1], "")), template)[:MAX_ID]
