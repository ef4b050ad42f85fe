"""One wrap for every handler, unary or streaming.

An interceptor is an async context manager around a `Call`. gRPC's own interceptors would need one form per kind of RPC
and would not see what a stream does after its first message. Handlers get bytes from gRPC and parse them here, so that a
caller who is refused costs no parsing, sizes are known, and malformed bytes get an error of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from memoryos.schema import Method
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import Invalid, TooLarge

DEGRADED_HEADER = ("memoryos-status", "degraded")
"""What answers carry while a store is down."""

REQUEST_ID_HEADER = "x-request-id"
QUIET_HEADER = "memoryos-quiet"
"""With `1` a caller does without the initial metadata of answers that have nothing else to say than its own request id."""
"""Where a request id comes in and goes out."""


class Call:
    """One call under way: what interceptors know of it and tell each other.

    Attributes:
        method: The RPC.
        context: gRPC's context.
        metadata: What the client sent, by lower-case name; of repeated names the last. Binary values are left out.
        request_id: The id of the call; "" until telemetry has set it.
        address: The client's address, or "" if not known.
        caller: Who calls, or None until auth knows.
        degraded: A store is down, or a part of the answer was left out; goes out with the initial metadata.
        extra: Further initial metadata for the client, sent with the first answer.
        trailers: Metadata for the client behind the answer; it costs no message of its own.
        code: How it ended; OK until told otherwise.
        reason: The reason of the error it ended with, or "".
        bytes_in: The size of the request.
        bytes_out: The size of the answers sent so far.
        reader_idle: How long the client may take nothing of a stream, in seconds; 0: until the deadline.
    """

    __slots__ = (
        "_begun",
        "_raw",
        "_request",
        "address",
        "bytes_in",
        "bytes_out",
        "caller",
        "code",
        "context",
        "degraded",
        "extra",
        "metadata",
        "method",
        "reader_idle",
        "reason",
        "request_id",
        "trailers",
    )

    def __init__(
        self, method: Method, context: grpc.aio.ServicerContext[Any, Any], raw: bytes, reader_idle: float = 0
    ) -> None:
        """Opens a call."""
        self.method = method
        self.context = context
        self.metadata = text_metadata(context)
        self.request_id = ""
        self.address = ""
        self.caller: Caller | None = None
        self.degraded = False
        self.extra: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.code = grpc.StatusCode.OK
        self.reason = ""
        self.bytes_in = len(raw)
        self.bytes_out = 0
        self.reader_idle = reader_idle
        self._raw = raw
        self._request: Message | None = None
        self._begun = False

    @property
    def request(self) -> Message:
        """The request, parsed at first use.

        Raises:
            TooLarge: It is over the method's limit.
            Invalid: It is malformed.
        """
        if self._request is None:
            limit = self.method.max_body_bytes
            if self.bytes_in > limit:
                raise TooLarge(
                    f"The request has {self.bytes_in:,} bytes; the limit is {limit:,}",
                    details="Send less at a time; `memoryos import FILE` brings in files of any size",
                    metadata={"size_bytes": str(self.bytes_in), "limit_bytes": str(limit)},
                )
            try:
                self._request = self.method.request_class.FromString(self._raw)
            except DecodeError:
                name = self.method.descriptor.input_type.name
                raise Invalid(f"The request is no well-formed {name}") from None
            self._raw = b""
        return self._request

    async def begin(self) -> None:
        """Sends the initial metadata, once; what is set later does not reach the client."""
        if self._begun:
            return
        self._begun = True
        if self.trailers:
            self.context.set_trailing_metadata(tuple(self.trailers.items()))
        if self.metadata.get(QUIET_HEADER) == "1" and not self.degraded and not self.extra:
            return  # the caller knows the id that it gave, and a message of its own is a wake-up of both sides more
        headers = [*self.extra.items(), (REQUEST_ID_HEADER, self.request_id)]
        if self.degraded:
            headers.append(DEGRADED_HEADER)
        with left_is_cancelled():
            await self.context.send_initial_metadata(headers)

    async def pack(self, answer: Message) -> bytes:
        """The bytes of an answer, after the initial metadata has gone."""
        data = answer.SerializeToString()
        self.bytes_out += len(data)
        await self.begin()
        return data

    async def write(self, answer: Message) -> None:
        """Sends one answer of a stream; returns when there is room for the next.

        Raises:
            CancelledError: There was none for too long: the client takes nothing.
        """
        data = await self.pack(answer)
        timer = asyncio.timeout(self.reader_idle or None)
        try:
            async with timer:
                with left_is_cancelled():
                    await self.context.write(data)
        except TimeoutError:
            if not timer.expired():
                raise
            # The status waits behind what is not taken: the handler does not wait for it.
            self.reason = "reader_idle"
            told = asyncio.ensure_future(self._tell(f"The client took nothing for {self.reader_idle:g} seconds"))
            _telling.add(told)
            told.add_done_callback(_telling.discard)
            raise asyncio.CancelledError from None

    async def _tell(self, message: str) -> None:
        """Ends the call for the client, whenever it hears of it; returns when it has, or has left."""
        with suppress(grpc.aio.AbortError, grpc.aio.InternalError, grpc.aio.UsageError):
            await self.context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, message)


_telling: set[asyncio.Future[None]] = set()
"""Ends of calls that wait for clients who take nothing; a task that nobody keeps may vanish."""


def text_metadata(context: grpc.aio.ServicerContext[Any, Any]) -> Mapping[str, str]:
    """What a client sent, by lower-case name; of repeated names the last. Binary values are left out."""
    return {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}


Door = Callable[[Call], grpc.Status | None]
"""Looks at a call before anything else does; gives the end of one that is not to cost anything."""

Around = Callable[[Call], AbstractAsyncContextManager[None]]
"""An interceptor: entered before the handler, left after it; it never swallows an exception."""


class Before:
    """An interceptor that has nothing to do after the handler.

    Args:
        step: What it does before; what it gives, if anything, is waited for.
    """

    __slots__ = ("step",)

    def __init__(self, step: Callable[[Call], Awaitable[None] | None]) -> None:
        self.step = step


Handler = Callable[[Message, Any], Any]
"""A servicer's method: a coroutine function, or an async generator function for a stream."""

_call: ContextVar[list[Call]] = ContextVar("memoryos_call")
"""The present call; none once it has ended, because a connection keeps the context it was made in, with all that is in it."""


def current_call() -> Call:
    """The present call, for servicers that send further initial metadata (`extra`) or mark an answer `degraded`.

    Raises:
        LookupError: There is no call.
    """
    return _call.get()[0]


class Live:
    """Counts the handlers that have not ended.

    gRPC's own stop returns before the `finally` blocks of cancelled handlers have run; stores must stay open for those.
    """

    def __init__(self) -> None:
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def count(self) -> int:
        """Handlers that have not ended."""
        return self._count

    def __enter__(self) -> None:
        self._count += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def wait_idle(self, seconds: float) -> bool:
        """Whether every handler has ended within the time."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


@contextmanager
def left_is_cancelled() -> Iterator[None]:
    """Takes a failure to send for what it is: the client has left, and gRPC's cancellation is only just behind.

    Raises:
        CancelledError: Instead of gRPC's error.
    """
    try:
        yield
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


@contextmanager
def _current(call: Call) -> Iterator[None]:
    """Makes a call the present one until it ends."""
    present = [call]
    _call.set(present)
    try:
        yield
    finally:
        present.clear()


async def _close(answers: AsyncGenerator[Message, None]) -> None:
    """Runs the `finally` blocks of a stream's handler to their end, whatever cancellation arrives meanwhile.

    One does arrive when a failed write, and not the cancellation behind it, was the first to tell that the client left.
    """
    closing = asyncio.ensure_future(answers.aclose())
    cancelled: asyncio.CancelledError | None = None
    while not closing.done():
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    closing.result()


def compose(*arounds: Around | Before) -> Around:
    """One interceptor out of several, the first outermost."""
    return lambda call: _Layers(arounds, call)


class _Layers(AbstractAsyncContextManager[None]):
    """Interceptors around a call; what `AsyncExitStack` does beyond this costs more than all of them do."""

    __slots__ = ("_arounds", "_call", "_entered")

    def __init__(self, arounds: tuple[Around | Before, ...], call: Call) -> None:
        self._arounds = arounds
        self._call = call
        self._entered: list[AbstractAsyncContextManager[None]] = []

    async def __aenter__(self) -> None:
        call = self._call
        try:
            for around in self._arounds:
                if isinstance(around, Before):
                    if (waited := around.step(call)) is not None:
                        await waited
                    continue
                layer = around(call)
                await layer.__aenter__()
                self._entered.append(layer)
        except BaseException as error:
            await self._leave(error)
            raise

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        await self._leave(error)

    async def _leave(self, error: BaseException | None) -> None:
        """Leaves those that were entered, the last first; raises what they make of the error, if that is another."""
        last = error
        while self._entered:
            layer = self._entered.pop()
            try:
                if last is None:
                    await layer.__aexit__(None, None, None)
                else:
                    await layer.__aexit__(type(last), last, last.__traceback__)
            except BaseException as raised:
                last = raised
        if last is not None and last is not error:
            raise last


def wrap(
    method: Method,
    handler: Handler,
    around: Around,
    live: Live,
    door: Door | None = None,
    reader_idle: float = 0,
) -> grpc.RpcMethodHandler[Any, Any]:
    """A servicer's method as gRPC takes it, with `around` around it and `door` before it.

    A stream's reader may idle for `reader_idle` seconds.
    """

    async def unary(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        call = Call(method, context, raw)
        if door is not None and (ending := door(call)) is not None:
            # Said like this it costs a third less than by an abort, and less than an answer.
            context.set_code(ending.code)
            context.set_details(ending.details)
            context.set_trailing_metadata(ending.trailing_metadata)
            return b""
        with live, _current(call):
            async with around(call):
                return await call.pack(await handler(call.request, context))
            raise AssertionError("an interceptor swallowed an exception")

    # A coroutine that writes, not a generator that yields: a generator suspended at its yield hears neither of a
    # cancellation nor of a deadline, and its `finally` would wait for the garbage collector.
    async def stream(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        call = Call(method, context, raw, reader_idle)
        if door is not None and (ending := door(call)) is not None:
            await context.abort_with_status(ending)
        with live, _current(call):
            async with around(call):
                answers = handler(call.request, context)
                try:
                    async for answer in answers:
                        await call.write(answer)
                except BaseException:
                    await _close(answers)
                    raise
                await call.begin()

    if method.streams:
        return grpc.unary_stream_rpc_method_handler(stream)
    return grpc.unary_unary_rpc_method_handler(unary)
