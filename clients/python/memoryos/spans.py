"""Spans that are exported to an OpenTelemetry collector. Imported only where `telemetry.endpoint` is set.

Needs the extra `otel`. Names and attributes follow OpenTelemetry's semantic conventions.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import wraps
from typing import Any

import memoryos
from memoryos import tracing
from memoryos.settings import SettingsError, TelemetrySettings
from memoryos.tracing import Hop, Span, Spans, Value

try:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise SettingsError(
        "telemetry.endpoint is set, but OpenTelemetry is not installed: pip install 'memoryos[otel]'"
    ) from error

_EXPORT_SECONDS = 5.0
_QUEUED = 4096
"""Spans that wait for the collector; while it is away further ones are dropped."""


class _Span:
    def __init__(self, span: Any) -> None:
        self._span = span
        self.told = False

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def note(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(attributes)

    def excuse(self) -> None:
        self.told = True

    def fail(self, kind: str) -> None:
        self.told = True
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR))


class ExportedSpans(Spans):
    """Makes spans with a tracer."""

    on = True

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._form = TraceContextTextMapPropagator()

    def server(self, name: str, attributes: Mapping[str, Value]) -> AbstractContextManager[Span]:
        """A span for what a caller asked of us."""
        return self._span(name, SpanKind.SERVER, attributes)

    def client(
        self, name: str, attributes: Mapping[str, Value], *, within: bool = False
    ) -> AbstractContextManager[Span]:
        """A span for what we ask of somebody."""
        if within and ((hop := tracing.current()) is None or not hop.recorded):
            return super().client(name, attributes)
        return self._span(name, SpanKind.CLIENT, attributes)

    @contextmanager
    def _span(self, name: str, kind: SpanKind, attributes: Mapping[str, Value]) -> Iterator[Span]:
        above = self._form.extract(tracing.outgoing())
        span = self._tracer.start_span(name, above, kind, attributes)
        headers: dict[str, str] = {}
        self._form.inject(headers, set_span_in_context(span, above))
        made = _Span(span)
        token = tracing.enter(
            Hop(headers[tracing.TRACEPARENT], headers.get(tracing.TRACESTATE, ""), span.is_recording())
        )
        try:
            yield made
        except asyncio.CancelledError:
            span.set_attribute("error.type", "cancelled")
            raise
        except BaseException as error:
            # The type alone: what an exception says may quote what a user sent.
            if not made.told:
                made.fail(type(error).__qualname__)
            raise
        finally:
            tracing.leave(token)
            span.end()


@asynccontextmanager
async def exported(settings: TelemetrySettings, part: str) -> AsyncIterator[Spans]:
    """Spans of a process, exported until left. A collector that is away costs spans, and nothing else.

    Args:
        settings: Where to, and how many.
        part: `server` or `bridge`.

    Raises:
        SettingsError: A setting cannot be used.
    """
    if not settings.endpoint.startswith(("http://", "https://")):
        raise SettingsError("telemetry.endpoint must be a URL such as http://127.0.0.1:4317")
    if settings.sampling_ratio > 1:
        raise SettingsError("telemetry.sampling_ratio must be between 0 and 1")
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sampling_ratio)),
        resource=Resource.create(
            {
                "service.name": f"{settings.service_name}-{part}",
                "service.version": memoryos.__version__,
                "service.instance.id": str(uuid.uuid4()),
            }
        ),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=_EXPORT_SECONDS)
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=_QUEUED,
            schedule_delay_millis=1000,
            export_timeout_millis=_EXPORT_SECONDS * 1000,
        )
    )
    try:
        yield ExportedSpans(provider.get_tracer("memoryos", memoryos.__version__))
    finally:
        await asyncio.to_thread(provider.shutdown)


def watch_store(spans: Spans, store: object, system: str, methods: Sequence[str]) -> None:
    """Has calls of a store make spans, as far as they belong to a recorded trace: keys and content are not in them.

    Args:
        spans: Makes them.
        store: An object whose methods are replaced.
        system: `db.system.name`: `redis` or `qdrant`.
        methods: Names of coroutine methods. Of `run` the command is the operation, of `batch` the number of commands is
            noted; of others the operation is the method's name.
    """
    for name in methods:
        setattr(store, name, _watched(spans, getattr(store, name), system, name))


def _watched(
    spans: Spans, method: Callable[..., Awaitable[Any]], system: str, name: str
) -> Callable[..., Awaitable[Any]]:
    @wraps(method)
    async def call(*args: Any, **kwargs: Any) -> Any:
        operation, attributes = name, {"db.system.name": system}
        more: dict[str, Value] = {}
        if name == "run":
            operation = str(args[0])
        elif name == "batch":
            operation = "BATCH"
            more["db.operation.batch.size"] = len(args[0])
        attributes["db.operation.name"] = operation
        with spans.client(f"{operation} {system}", {**attributes, **more}, within=True):
            return await method(*args, **kwargs)

    return call
