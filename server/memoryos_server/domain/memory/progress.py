"""Who holds what of a subject at the moment, and how far the work on it has come in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal
from weakref import WeakValueDictionary


class Lock(asyncio.Lock):
    """A lock that tells how often it was taken.

    Attributes:
        times: Grows each time.
    """

    def __init__(self) -> None:
        """Begins untaken."""
        super().__init__()
        self.times = 0

    async def acquire(self) -> Literal[True]:
        """Takes it."""
        await super().acquire()
        self.times += 1
        return True


class Locks:
    """A lock per subject and kind of work.

    `change` orders the changes of a subject. `digest` and `segments` are held by whoever writes what is derived from its
    turns, and by a change that touches that; they are taken in this order.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[str, str], Lock] = WeakValueDictionary()

    def change(self, subject_id: str) -> Lock:
        """Held while a change is made and applied."""
        return self._get(subject_id, "change")

    def digest(self, subject_id: str) -> Lock:
        """Held while facts are taken from turns."""
        return self._get(subject_id, "digest")

    def segments(self, subject_id: str) -> Lock:
        """Held while turns are made into segments."""
        return self._get(subject_id, "segments")

    def _get(self, subject_id: str, kind: str) -> Lock:
        key = (subject_id, kind)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = Lock()
        return lock


class Progress:
    """Which entries of a subject, accepted here, are still to be indexed and digested."""

    def __init__(self) -> None:
        self._open: dict[str, set[str]] = {}
        self._idle: dict[str, asyncio.Event] = {}
        self._partitions: dict[int, set[str]] = {}
        self._hurry: dict[int, asyncio.Event] = {}

    def hurry(self, partition: int) -> asyncio.Event:
        """Set while somebody waits for work of a partition; whoever takes the work up clears it."""
        return self._hurry.setdefault(partition, asyncio.Event())

    def begin(self, subject_id: str, entries: Iterable[str]) -> None:
        """Says that work on entries is under way."""
        if not (new := set(entries)):
            return
        self._open.setdefault(subject_id, set()).update(new)
        self._idle.setdefault(subject_id, asyncio.Event())
        self._partitions.setdefault(_partition(subject_id), set()).add(subject_id)

    def end(self, subject_id: str, entry: str) -> None:
        """Says that nobody need wait for an entry any more: it is done, or will not be done soon."""
        left = self._open.get(subject_id)
        if left is None:
            return
        left.discard(entry)
        if not left:
            del self._open[subject_id]
            self._idle.pop(subject_id).set()
            mine = self._partitions[_partition(subject_id)]
            mine.discard(subject_id)
            if not mine:
                del self._partitions[_partition(subject_id)]

    def under_way(self, partition: int) -> list[tuple[str, str]]:
        """The subjects and entries of a partition that somebody may wait for."""
        return [(subject, entry) for subject in self._partitions.get(partition, ()) for entry in self._open[subject]]

    def leave(self, partition: int) -> None:
        """Says that somebody else works on a partition: nobody here need wait for it."""
        for subject_id, entry in self.under_way(partition):
            self.end(subject_id, entry)

    async def wait(self, subject_id: str) -> None:
        """Returns once nothing of the subject is under way."""
        if event := self._idle.get(subject_id):
            self.hurry(_partition(subject_id)).set()
            await event.wait()


def _partition(subject_id: str) -> int:
    return int(subject_id[:2], 16)
