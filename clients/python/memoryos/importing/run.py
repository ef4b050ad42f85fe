"""Sends what a reader gives: several items at a time, those of one conversation in order, each as often as it takes.

There is no state on disk. Every item carries an event id that follows from its source, and the server knows what it has: an
import that was interrupted is just run again.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from time import monotonic
from typing import Any

from memoryos import errors
from memoryos.aio import AsyncClient
from memoryos.importing.items import Item, Memory, Problem, Turn, Unreadable

ATTEMPTS = 8
"""How often an item is sent, beyond the client's own attempts, before the import gives up on the server."""

MOST_LISTED = 1000
"""The most failures that are listed; all are counted."""

_LONGEST_PAUSE = 30.0
_AHEAD = 16  # items that wait for each sender
_READ_AT_ONCE = 64

_TRY_AGAIN = (errors.Unavailable, errors.TooManyRequests, errors.DeadlineExceeded)
_HOPELESS = (errors.Unauthenticated, errors.PermissionDenied)
"""What the next item would meet, too."""


@dataclass(slots=True)
class Report:
    """What became of an import.

    Attributes:
        read: Items found in the file, problems included.
        turns: Turns that the server has now and had not before.
        memories: Memories that the server has now and had not before.
        duplicates: Turns and memories that it had already.
        failed: What could not be imported.
        errors: Where and why, at most 1000.
        stopped: Why the import ended early, "" if it did not.
        seconds: How long it took.
    """

    read: int = 0
    turns: int = 0
    memories: int = 0
    duplicates: int = 0
    failed: int = 0
    errors: list[dict[str, str]] = field(default_factory=list)
    stopped: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything was imported."""
        return not self.failed and not self.stopped

    @property
    def sent(self) -> int:
        """Items that the server has."""
        return self.turns + self.memories + self.duplicates

    def fail(self, where: str, message: str) -> None:
        """Counts and lists a failure."""
        self.failed += 1
        if len(self.errors) < MOST_LISTED:
            self.errors.append({"where": where, "error": message})

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


class Stopped(Exception):
    """The import cannot go on; the message says why."""


async def send(
    client: AsyncClient,
    items: Iterator[Item],
    user_id: str | None,
    *,
    senders: int = 8,
    tick: Callable[[Report], None] = lambda report: None,
    first_pause: float = 1.0,
) -> Report:
    """Imports items.

    Args:
        client: Where to.
        items: What a reader gives.
        user_id: Whose they become; None: whom an item names, else the client's user.
        senders: How many items are under way at a time.
        tick: Called after every item.
        first_pause: Seconds before an item is sent again; the pause doubles from there.
    """
    report, began = Report(), monotonic()
    queues: list[asyncio.Queue[Turn | Memory]] = [asyncio.Queue(_AHEAD) for _ in range(senders)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_sender(client, queue, user_id, report, tick, first_pause)) for queue in queues]
            await _distribute(items, queues, report, tick)
            for queue in queues:
                await queue.join()
            for task in tasks:
                task.cancel()
    except* Stopped as stops:
        report.stopped = str(stops.exceptions[0])
    report.seconds = round(monotonic() - began, 3)
    return report


def count(items: Iterator[Item], tick: Callable[[Report], None]) -> Report:
    """What an import would send; nothing is sent."""
    report, began = Report(), monotonic()
    try:
        for item in items:
            report.read += 1
            if isinstance(item, Problem):
                report.fail(item.where, item.message)
            elif isinstance(item, Turn):
                report.turns += 1
            else:
                report.memories += 1
            tick(report)
    except Unreadable as error:
        report.stopped = f"the file cannot be read on: {error}"
    report.seconds = round(monotonic() - began, 3)
    return report


async def _distribute(
    items: Iterator[Item],
    queues: list[asyncio.Queue[Turn | Memory]],
    report: Report,
    tick: Callable[[Report], None],
) -> None:
    while True:
        batch, problem = await asyncio.to_thread(_some, items)
        for item in batch:
            report.read += 1
            if isinstance(item, Problem):
                report.fail(item.where, item.message)
                tick(report)
            else:
                await queues[zlib.crc32(_lane(item).encode()) % len(queues)].put(item)
        if problem:
            report.stopped = f"the file cannot be read on: {problem}"
            return
        if len(batch) < _READ_AT_ONCE:
            return


def _some(items: Iterator[Item]) -> tuple[list[Item], str]:
    """The next items, and what ended the reading, "" if nothing did."""
    batch: list[Item] = []
    try:
        for item in islice(items, _READ_AT_ONCE):
            batch.append(item)  # one by one: what was read before an error counts
    except Unreadable as error:
        return batch, str(error)
    return batch, ""


def _lane(item: Turn | Memory) -> str:
    """Items of one lane are sent in order, one after another."""
    return f"{item.user_id}/{item.session_id}" if isinstance(item, Turn) else item.event_id


async def _sender(
    client: AsyncClient,
    queue: asyncio.Queue[Turn | Memory],
    user_id: str | None,
    report: Report,
    tick: Callable[[Report], None],
    first_pause: float,
) -> None:
    while True:
        item = await queue.get()
        try:
            await _persist(client, item, user_id or item.user_id or None, report, first_pause)
        except errors.MemoryOSError as error:
            report.fail(item.where, str(error))
        except ValueError as error:  # what the protocol cannot carry, such as half of a surrogate pair
            report.fail(item.where, f"it cannot be sent: {error}")
        tick(report)
        queue.task_done()


async def _persist(
    client: AsyncClient, item: Turn | Memory, user_id: str | None, report: Report, first_pause: float
) -> None:
    pause, attempt = first_pause, 0
    while True:
        try:
            await _once(client, item, user_id, report)
            return
        except _HOPELESS as error:
            raise Stopped(str(error)) from None
        except _TRY_AGAIN as error:
            if isinstance(error, errors.TooManyRequests) and error.retry_after:
                # A server that says when to come back works on what it has: that is no failure.
                await asyncio.sleep(error.retry_after * random.uniform(1.0, 1.5))  # noqa: S311  # jitter
                continue
            attempt += 1
            if attempt == ATTEMPTS:
                raise Stopped(f"the server does not take it: {error}") from None
            await asyncio.sleep(max(random.uniform(pause / 2, pause), error.retry_after or 0.0))  # noqa: S311  # jitter
            pause = min(pause * 2, _LONGEST_PAUSE)


async def _once(client: AsyncClient, item: Turn | Memory, user_id: str | None, report: Report) -> None:
    if isinstance(item, Memory):
        kept = await client.memories.create(
            item.content, "fact", event_id=item.event_id, created_at=item.created_at, user_id=user_id
        )
        if kept.duplicate:
            report.duplicates += 1
        else:
            report.memories += 1
        return
    added = await client.add(
        item.content,
        item.role,
        user_id=user_id,
        session_id=item.session_id or None,
        event_id=item.event_id,
        name=item.name or None,
        timestamp=item.timestamp,
    )
    if added.duplicate:
        report.duplicates += 1
    else:
        report.turns += 1
