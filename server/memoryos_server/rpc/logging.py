"""The log: one line per call, and whatever else has to be said, each with the id of the call it belongs to.

Lines never hold content, keys or embeddings. This is why a crash is logged as types and places, without the exceptions'
own texts, which may quote what a user sent; the level `debug` adds them.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor


def configure(level: str = "info", format: str = "auto", stream: BinaryIO | None = None) -> FilteringBoundLogger:
    """Sets up the log of the process and gives its logger.

    `structlog.get_logger()` and the standard library's loggers write the same lines to the same place.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        format: `json`, `text`, or `auto`: text on a terminal.
        stream: Where lines go; default standard error.
    """
    out = sys.stderr.buffer if stream is None else stream
    if format == "auto":
        format = "text" if out.isatty() else "json"
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        _safe_exception(with_text=number <= logging.DEBUG),
    ]
    render: Processor
    if format == "json":
        render = structlog.processors.JSONRenderer(serializer=_dumps)
    else:
        render = structlog.dev.ConsoleRenderer(colors=out.isatty(), timestamp_key="ts")
    structlog.configure(
        processors=[*shared, render if format == "json" else _encoded(render)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _decoded(render)],
        )
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(number, logging.INFO))
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


class _Handler(logging.Handler):
    """Writes the standard library's records as lines to a byte stream."""

    def __init__(self, out: BinaryIO) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line; a failure is the standard library's to report."""
        try:
            self._out.write(self.format(record).encode() + b"\n")
            self._out.flush()
        except Exception:
            self.handleError(record)


def _dumps(line: Any, **_: Any) -> bytes:
    return orjson.dumps(line, default=str)


def _encoded(render: Processor) -> Processor:
    def processor(logger: Any, name: str, line: Any) -> bytes:
        return str(render(logger, name, line)).encode()

    return processor


def _decoded(render: Processor) -> Processor:
    def processor(logger: Any, name: str, line: Any) -> str:
        text = render(logger, name, line)
        return text.decode() if isinstance(text, bytes) else str(text)

    return processor


def _safe_exception(*, with_text: bool) -> Processor:
    """Replaces `exc_info` by `exception`: types and places, and the exceptions' own texts only if asked for."""

    def processor(_logger: Any, _name: str, line: Any) -> Any:
        info = line.pop("exc_info", None)
        if info is True:
            info = sys.exc_info()
        error = info if isinstance(info, BaseException) else (info[1] if info else None)
        if error is not None:
            line["exception"] = "".join(traceback.format_exception(error)) if with_text else describe(error)
        return line

    return processor


def describe(error: BaseException) -> str:
    """Types and places of an exception and of those behind it, newest first, without their texts."""
    parts: list[str] = []
    seen: set[int] = set()
    present: BaseException | None = error
    while present is not None and id(present) not in seen:
        seen.add(id(present))
        frames = traceback.extract_tb(present.__traceback__)
        places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        parts.append(f"{type(present).__module__}.{type(present).__qualname__} at {places or 'nowhere'}")
        present = present.__cause__ or (None if present.__suppress_context__ else present.__context__)
    return "; after ".join(parts)
