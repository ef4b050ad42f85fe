"""The bridge's log: JSON lines (or text on a terminal) to standard error, made once per process and handed on."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
import structlog

from memoryos.settings import LogSettings

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


def make(settings: LogSettings, stream: BinaryIO | None = None) -> FilteringBoundLogger:
    """A logger; `stream` is where lines go, default standard error."""
    out = sys.stderr.buffer if stream is None else stream
    text = settings.format == "text" or (settings.format == "auto" and out.isatty())
    render: Any
    if text:
        console = structlog.dev.ConsoleRenderer(colors=out.isatty(), timestamp_key="ts")

        def render(logger: Any, name: str, event: Any) -> bytes:
            return str(console(logger, name, event)).encode()
    else:
        render = structlog.processors.JSONRenderer(serializer=lambda line, **_: orjson.dumps(line, default=str))
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.BytesLogger(out),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
    )
    return logger


def describe(error: BaseException) -> str:
    """Type and places of an exception, innermost first, without its text, which may quote what a user sent."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__module__}.{type(error).__qualname__} at {places or 'nowhere'}"


class Forward(logging.Handler):
    """Hands the standard library's records (the HTTP server's) to our logger.

    An aborted answer makes the HTTP server complain that it was not completed; the request's own line says so already.
    """

    def __init__(self, logger: FilteringBoundLogger) -> None:
        """Keeps the logger."""
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Logs one record."""
        if record.name == "uvicorn.access":
            return  # it shows raw paths, which may hold keys; the boundary logs requests
        message = record.getMessage().strip()
        if message == "ASGI callable returned without completing response.":
            return
        level = "debug" if record.levelno <= logging.INFO else record.levelname.lower()
        about = {"exception": describe(record.exc_info[1])} if record.exc_info and record.exc_info[1] else {}
        getattr(self._logger, level)("http_server", logger=record.name, message=message, **about)
