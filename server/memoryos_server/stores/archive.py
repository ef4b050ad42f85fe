"""Archive files: records that were moved out of memory, append-only and checksummed.

A file begins with a line of JSON: its form, how many records of whom came before it, and the checksum that the file before it
ended with. Then come batches, each `length (4) | checksum (16) | msgpack`, whose checksum covers the one before: what is changed,
taken out or cut off in the middle is seen. What is torn at the very end was never relied on, and is put aside, into a file of its own,
when the archive is opened. Files are numbered and never written again once there is a next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

_FORM = 2
_HEAD = struct.Struct(">I16s")
_FILE_BYTES = 64 * 1024 * 1024
_msgpack: Any = msgpack  # ships no types


class ArchiveError(RuntimeError):
    """An archive file is damaged or missing; the message names it."""


@dataclass(slots=True)
class _State:
    """What a file has come to."""

    checksum: bytes
    totals: Counter[str]
    end: int = 0
    last: Any = None
    torn: bool = False


class Archive:
    """The archive of one kind of records in one directory; a process is its only writer.

    Attributes:
        last: The batch that was written last, None if there is none.

    Raises:
        ArchiveError: A file is damaged.
        OSError: The directory cannot be used.
    """

    def __init__(self, directory: Path, *, file_bytes: int = _FILE_BYTES) -> None:
        self._directory = directory
        self._most = file_bytes
        files = self._files()
        self._number = _number(files[-1]) if files else 0
        self._state = _scan(files[-1]) if files else _State(bytes(16), Counter())
        self.last = self._state.last
        if files and self._state.last is None and len(files) > 1:
            self.last = _scan(files[-2]).last  # the newest has only its first line
        if self._state.torn:
            _put_aside(files[-1], self._state.end)
            os.truncate(files[-1], self._state.end)

    @property
    def totals(self) -> Mapping[str, int]:
        """Whose -> number of records."""
        return self._state.totals

    def append(self, place: int, records: Sequence[Sequence[Any]]) -> None:
        """Adds a batch, durable when this returns, or leaves the archive as it was.

        Args:
            place: Where the records come from.
            records: What msgpack carries; the first of each says whose it is.

        Raises:
            OSError: It cannot be written, for want of space perhaps.
        """
        batch = {"place": place, "records": [list(record) for record in records]}
        raw = _msgpack.packb(batch, use_bin_type=True)
        path = self._path()
        checksum = _next(self._state.checksum, raw)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            left = memoryview(_HEAD.pack(len(raw), checksum) + raw)
            while left:  # a disk that gets full takes a part
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self._state.end)
            raise
        finally:
            os.close(fd)
        self._state.end += _HEAD.size + len(raw)
        self._state.checksum = checksum
        self._state.totals.update(_whose(batch))
        self._state.last = self.last = batch

    def verify(self) -> int:
        """Reads everything; the number of records.

        Raises:
            ArchiveError: Something was changed, is missing, or was cut off.
        """
        before = _State(bytes(16), Counter())
        files = self._files()
        for at, path in enumerate(files):
            if _number(path) != at + 1:
                raise ArchiveError(f"{path.parent} has no file {at + 1}")
            follows, totals, _ = _first(path)
            if follows != before.checksum or totals != before.totals:
                raise ArchiveError(f"{path} does not follow the file before it")
            before = _scan(path)
            if before.torn and at + 1 < len(files):
                raise ArchiveError(f"{path} was cut off")
        if before.totals != self._state.totals or before.checksum != self._state.checksum:
            raise ArchiveError(f"{self._directory} was cut off")
        return sum(before.totals.values())

    def backwards(self) -> Iterator[Any]:
        """Every batch, the newest first; a file's are read at once."""
        for path in reversed(self._files()):
            yield from reversed(list(_batches(path)))

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("[0-9]*.archive"))

    def _path(self) -> Path:
        """The file to write to; the next one if it is time for that."""
        if self._number and self._state.end < self._most:
            return self._directory / f"{self._number:06}.archive"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{self._number + 1:06}.archive"
        raw = _line(self._state.checksum, self._state.totals)
        fresh = path.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        fd = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._number += 1
        self._state.end = len(raw)
        return path


@dataclass(frozen=True, slots=True)
class Stored:
    """A batch as it lies in a file, or what is left of one.

    Attributes:
        path: The file.
        at: Where in it, bytes.
        batch: What is in it; None if it cannot be read, then nothing behind it in this file can.
        intact: Whether its checksum holds.
    """

    path: Path
    at: int
    batch: Any
    intact: bool


def stored_batches(directory: Path) -> Iterator[Stored]:
    """Everything that can be read of an archive, in order, and what cannot. Changes nothing, and raises nothing for damage.

    Raises:
        OSError: A file cannot be read.
    """
    checksum, totals = bytes(16), Counter[str]()
    for place, path in enumerate(sorted(directory.glob("[0-9]*.archive")), 1):
        try:
            follows, before, start = _first(path)
        except ArchiveError:
            yield Stored(path, 0, None, False)
            continue
        if follows != checksum or before != totals or _number(path) != place:
            yield Stored(path, 0, None, False)
        checksum, totals = follows, before
        with path.open("rb") as file:
            at = file.seek(start)
            while raw := file.read(_HEAD.size):
                length, expected = _HEAD.unpack(raw) if len(raw) == _HEAD.size else (0, b"")
                body = file.read(length)
                checksum = _next(checksum, body)
                batch = _unpacked(body) if expected and len(body) == length else None
                yield Stored(path, at, batch, batch is not None and checksum == expected)
                if batch is None:
                    break
                checksum = expected
                totals.update(_whose(batch))
                at += len(raw) + length


def _unpacked(body: bytes) -> Any:
    """A batch; None for what is none."""
    try:
        batch = _msgpack.unpackb(body, raw=False)
        return batch if all(isinstance(record, list) and record for record in batch["records"]) else None
    except Exception:  # whatever a changed byte makes of it
        return None


def _put_aside(path: Path, start: int) -> None:
    """Copies the end of a file, so that what somebody may have damaged is not lost for good."""
    with path.open("rb") as file:
        file.seek(start)
        torn = file.read()
    aside = path.with_suffix(f".torn-{start}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(torn)


def _number(path: Path) -> int:
    return int(path.stem)


def _next(checksum: bytes, raw: bytes) -> bytes:
    return hashlib.blake2b(checksum + raw, digest_size=16).digest()


def _line(follows: bytes, before: Mapping[str, int]) -> bytes:
    head = {"form": _FORM, "follows": follows.hex(), "before": dict(before)}
    return json.dumps(head).encode() + b"\n"


def _first(path: Path) -> tuple[bytes, Counter[str], int]:
    """What a file follows: checksum and numbers; and how long its first line is."""
    with path.open("rb") as file:
        raw = file.readline()
    try:
        head: dict[str, Any] = json.loads(raw)
        if head["form"] != _FORM:
            raise ArchiveError(
                f"{path} has the form {head['form']}, this version reads {_FORM}: run the version that made it"
            )
        before = Counter({str(whose): int(count) for whose, count in head["before"].items()})
        follows = bytes.fromhex(head["follows"])
        if raw != _line(follows, before):
            raise ValueError("it is not as it was written")
        return follows, before, len(raw)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArchiveError(f"{path} is damaged: its first line is none of an archive") from None


def _scan(path: Path) -> _State:
    follows, totals, start = _first(path)
    state = _State(follows, totals, start)
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        while state.end < size:
            raw = file.read(_HEAD.size)
            length, checksum = _HEAD.unpack(raw) if len(raw) == _HEAD.size else (0, b"")
            body = file.read(length) if state.end + len(raw) + length <= size else b""
            whole = len(raw) == _HEAD.size and len(body) == length
            if not whole or _next(state.checksum, body) != checksum:
                if state.end + len(raw) + length < size and whole:
                    raise ArchiveError(f"{path} is damaged at byte {state.end}")
                state.torn = True
                return state
            state.last = _msgpack.unpackb(body, raw=False)
            state.totals.update(_whose(state.last))
            state.checksum = checksum
            state.end += _HEAD.size + length
    return state


def _batches(path: Path) -> Iterator[Any]:
    _, _, start = _first(path)
    with path.open("rb") as file:
        file.seek(start)
        while len(raw := file.read(_HEAD.size)) == _HEAD.size:
            length, _ = _HEAD.unpack(raw)
            if len(body := file.read(length)) == length:
                yield _msgpack.unpackb(body, raw=False)


def _whose(batch: Any) -> list[str]:
    return [str(record[0]) for record in batch["records"]]
