"""Who holds what of a subject at the moment, and how far the work on it has come in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from weakref import WeakValueDictionary


class Locks:
    """A lock per subject and kind of work.

    `change` orders the changes of a subject. `digest` and `segments` are held by whoever writes what is derived from its
    turns, and by a change that touches that; they are taken in this order.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def change(self, subject_id: str) -> asyncio.Lock:
        """Held while a change is made and applied."""
        return self._get(subject_id, "change")

    def digest(self, subject_id: str) -> asyncio.Lock:
        """Held while facts are taken from turns."""
        return self._get(subject_id, "digest")

    def segments(self, subject_id: str) -> asyncio.Lock:
        """Held while turns are made into segments."""
        return self._get(subject_id, "segments")

    def _get(self, subject_id: str, kind: str) -> asyncio.Lock:
        key = (subject_id, kind)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


class Progress:
    """Which entries of a subject, accepted here, are still to be indexed and digested."""

    def __init__(self) -> None:
        self._open: dict[str, set[str]] = {}
        self._idle: dict[str, asyncio.Event] = {}

    def begin(self, subject_id: str, entries: Iterable[str]) -> None:
        """Says that work on entries is under way."""
        self._open.setdefault(subject_id, set()).update(entries)
        self._idle.setdefault(subject_id, asyncio.Event())

    def end(self, subject_id: str, entry: str) -> None:
        """Says that nobody need wait for an entry any more: it is done, or will not be done soon."""
        left = self._open.get(subject_id)
        if left is None:
            return
        left.discard(entry)
        if not left:
            del self._open[subject_id]
            self._idle.pop(subject_id).set()

    def leave(self, partition: int) -> None:
        """Says that somebody else works on a partition: nobody here need wait for it."""
        for subject_id in [s for s in self._open if int(s[:2], 16) == partition]:
            for entry in list(self._open[subject_id]):
                self.end(subject_id, entry)

    async def wait(self, subject_id: str) -> None:
        """Returns once nothing of the subject is under way."""
        if event := self._idle.get(subject_id):
            await event.wait()
