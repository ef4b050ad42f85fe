"""Reads the file of providers, and again whenever it changes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from memoryos_server.tools.llm.catalog import Catalog
from memoryos_server.tools.llm.provider import Provider
from memoryos_server.tools.llm.table import TableError, kind_of, of_kind, read_table

UPSTREAM = "upstream"
"""The name of the provider that the settings name."""

POLL_SECONDS = 1.0

_log = logging.getLogger(__name__)


class UpstreamOptions(Protocol):
    """The one provider of the settings, and the file of more; the settings of the upstream have this form."""

    @property
    def base_url(self) -> str:
        """Such as `https://api.openai.com/v1`, or "" for none."""

    @property
    def api_key(self) -> str:
        """The provider's key, or "" for none."""

    @property
    def connect_timeout_seconds(self) -> float:
        """How long a connection may take."""

    @property
    def first_byte_timeout_seconds(self) -> float:
        """How long the first byte of an answer may take."""

    @property
    def idle_timeout_seconds(self) -> float:
        """How long a stream may bring no data event, or a JSON answer no byte."""

    @property
    def providers_file(self) -> str:
        """The file of providers, or "" for none."""


def catalog_of(options: UpstreamOptions, environment: Mapping[str, str] = os.environ) -> Catalog:
    """The providers of the settings: those of the file, and the one named there itself, which is asked last.

    Raises:
        TableError: The file cannot be read or used.
    """
    single = {UPSTREAM: _single(options)} if options.base_url else {}
    catalog = Catalog(providers=single)
    if options.providers_file:
        try:
            text = Path(options.providers_file).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise TableError(f"upstream.providers_file: {options.providers_file}: {reason}") from None
        try:
            catalog = read_table(text, environment, single)
        except TableError as error:
            raise TableError(f"upstream.providers_file: {options.providers_file}: {error}") from None
    return catalog


def _single(options: UpstreamOptions) -> Provider:
    provider = Provider(
        name=UPSTREAM,
        base_url=options.base_url,
        api_key=options.api_key,
        connect_timeout_seconds=options.connect_timeout_seconds,
        first_byte_timeout_seconds=options.first_byte_timeout_seconds,
        idle_timeout_seconds=options.idle_timeout_seconds,
    )
    kind = kind_of(options.base_url)
    return of_kind(kind, provider) if kind else provider


class Reloading:
    """Watches the file of providers while it is open (`async with`); a file that cannot be used changes nothing.

    Args:
        options: Where the file is.
        changed: Told of each new catalog.
    """

    def __init__(self, options: UpstreamOptions, changed: Callable[[Catalog], None]) -> None:
        self._options = options
        self._changed = changed
        self._seen = self._stamp()  # now: what changes while the file is read for the first time is seen, too
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Reloading:
        if self._options.providers_file:
            self._task = asyncio.create_task(self._watch(self._seen))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self, seen: tuple[int, ...] | None) -> None:
        before = seen
        while True:
            await asyncio.sleep(POLL_SECONDS)
            now = await asyncio.to_thread(self._stamp)
            if now == seen or now != before:
                before = now  # a file that is being written is read when it has stayed the same for a while
                continue
            seen = now
            try:
                catalog = await asyncio.to_thread(catalog_of, self._options)
            except TableError as error:
                _log.error("the providers stay as they were: %s", error)
            except Exception as error:  # whatever is wrong with this file, the next one counts
                _log.error("the providers stay as they were: the file cannot be read (%s)", type(error).__name__)
            else:
                self._changed(catalog)
                _log.info("the providers were read anew: %s", ", ".join(catalog.providers))

    def _stamp(self) -> tuple[int, ...] | None:
        """What changes with the file; None if there is none."""
        try:
            stat = Path(self._options.providers_file).expanduser().stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
