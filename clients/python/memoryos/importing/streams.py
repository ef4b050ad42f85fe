"""Files of any size, read in pieces: lines, and the elements of one JSON array."""

from __future__ import annotations

import codecs
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from memoryos.importing.items import Unreadable

_CHUNK = 256 * 1024
MAX_ELEMENT = 256 * 1024 * 1024
"""The longest line or array element, in characters: what is longer is no conversation but a broken file."""

_BLANK = " \t\r\n"
_AFTER = tuple(",]}" + _BLANK)  # what may follow a value
_NEAR_END = 16  # characters: a literal or an escape that a piece cuts in two goes wrong so close to its end


class Source:
    """A file, or what a ZIP archive of a data export holds of conversations.

    Attributes:
        name: The file's name.
        size: Its bytes, unpacked.
        position: The bytes read so far.
    """

    def __init__(self, path: Path) -> None:
        """Looks at the file.

        Raises:
            OSError: It cannot be opened.
            Unreadable: It is an archive without conversations.
        """
        self.name = path.name
        self.position = 0
        self._path = path
        self._members: list[str] = []
        with path.open("rb") as file:
            packed = zipfile.is_zipfile(file)
        if not packed:
            self.size = path.stat().st_size
            return
        with zipfile.ZipFile(path) as archive:
            found = {
                info.filename: info.file_size
                for info in archive.infolist()
                if Path(info.filename).name.startswith("conversations") and info.filename.endswith(".json")
            }
        if not found:
            raise Unreadable("the archive holds no conversations.json")
        self._members = sorted(found)
        self.size = sum(found.values())

    @contextmanager
    def parts(self) -> Iterator[Iterator[BinaryIO]]:
        """The file, or the archive's members one after another."""
        self.position = 0
        if not self._members:
            with self._path.open("rb") as file:
                yield iter([self._counted(file)])
            return
        with zipfile.ZipFile(self._path) as archive:
            yield (self._counted(archive.open(name)) for name in self._members)

    def _counted(self, file: Any) -> BinaryIO:
        return io.BufferedReader(_Counted(file, self), _CHUNK)


class _Counted(io.RawIOBase):
    def __init__(self, file: Any, source: Source) -> None:
        self._file = file
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise Unreadable(f"it is damaged: {error}") from None
        buffer[: len(data)] = data
        self._source.position += len(data)
        return len(data)


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1.

    Raises:
        Unreadable: One is too long.
    """
    number = 0
    while line := file.readline(MAX_ELEMENT):
        number += 1
        if len(line) == MAX_ELEMENT and not line.endswith(b"\n"):
            raise Unreadable(f"line {number} is longer than {MAX_ELEMENT} bytes")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line.strip()


def elements(file: BinaryIO, keys: Sequence[str] = ()) -> Iterator[Any]:
    """The elements of a JSON array that is the file, or the value of one of `keys` in an object that is the file.

    Only one element is held at a time.

    Raises:
        Unreadable: It is no such JSON.
    """
    text = _Text(file)
    opening = text.peek()
    if opening == "[":
        yield from text.array()
        return
    if opening != "{":
        raise Unreadable("it is neither a JSON array nor a JSON object")
    found = False
    for key in text.members():
        if key in keys and text.peek() == "[":
            found = True
            yield from text.array()
        else:
            text.value()
    if not found:
        raise Unreadable(f"the JSON object has none of the lists {', '.join(keys)}" if keys else "it is no JSON array")


class _Text:
    """JSON text that comes in pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANK:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._fill(_CHUNK)

    def array(self) -> Iterator[Any]:
        """The elements of the array that begins here."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        number = 0
        while True:
            number += 1
            try:
                yield self.value()
            except Unreadable as error:
                raise Unreadable(f"element {number}: {error}") from None
            if self.peek() == "]":
                self._take("]")
                return
            self._take(",")

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; who iterates reads the value of each."""
        self._take("{")
        if self.peek() == "}":
            return
        while True:
            key = self.value()
            self._take(":")
            yield str(key)
            if self.peek() == "}":
                return
            self._take(",")

    def value(self) -> Any:
        """The JSON value that begins here."""
        self.peek()
        more = _CHUNK
        while True:
            try:
                found, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or self._is_wrong(error):
                    raise Unreadable(f"it is not valid JSON: {error.msg}") from None
            except RecursionError:
                raise Unreadable("it is nested too deeply") from None
            else:
                # A number that a piece cuts in two reads as a shorter one.
                if self._ended or not isinstance(found, int | float) or self._text[end : end + 1] in _AFTER:
                    self._at = end
                    return found
            if len(self._text) - self._at > MAX_ELEMENT:
                raise Unreadable(f"it is longer than {MAX_ELEMENT} characters")
            self._fill(more)
            more *= 2  # so that the whole of a long element is tried a few times only

    def _is_wrong(self, error: json.JSONDecodeError) -> bool:
        """Whether more text cannot mend it."""
        return error.pos < len(self._text) - _NEAR_END and not error.msg.startswith("Unterminated string")

    def _take(self, sign: str) -> None:
        if self.peek() != sign:
            raise Unreadable(f"{sign!r} was expected, not {self.peek()!r}")
        self._at += 1

    def _fill(self, size: int) -> None:
        data = self._file.read(size)
        self._ended = not data
        try:
            self._text = self._text[self._at :] + self._decode.decode(data, self._ended)
        except UnicodeDecodeError:
            raise Unreadable("it is not UTF-8 text") from None
        self._at = 0
