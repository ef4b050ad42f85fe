"""The file form of a backup: a tar of numbered parts, each with its checksum in a manifest at the end.

A part is msgpack, compressed; parts are small enough to be made and read in memory. Any tar reads it.

| member | holds |
|---|---|
| `keys/NNNNNN` | pieces of keys, see `portable_keys` |
| `points/<collection>/NNNNNN` | points, see `portable_points` |
| `people/NNNNNN` | in a keyring: subject id, epoch, lookup hash, sealed identity, wrapped key |
| `archive/<name>` | an archive file as it is |
| `manifest.json` | what it is, and of each member size, SHA-256 and number of rows |
| `manifest.sha256` | the SHA-256 of the manifest |
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack

FORMAT = 1
"""The form of the files that this code writes. Raised with every change that older code would misread."""

_MANIFEST, _SUM = "manifest.json", "manifest.sha256"
_PART_BYTES = 4 * 1024 * 1024
_PART_ROWS = 4096
_msgpack: Any = msgpack  # ships no types


class BackupError(RuntimeError):
    """A backup cannot be made or used; the message says why and what to do."""


class BackupWriter:
    """Writes a backup beside its name and gives it the name once it is complete and durable. A context manager.

    Its mode is 0600. Left without `finish`, it leaves nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fresh = path.with_name(path.name + ".partial")
        self._members: list[dict[str, Any]] = []
        self._rows: dict[str, list[Any]] = {}
        self._sizes: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._parts: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(self._fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
        os.fchmod(self._file.fileno(), 0o600)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses once more what it refused before
            self._file.close()
        self._fresh.unlink(missing_ok=True)

    def add(self, series: str, rows: Sequence[Any], size: int) -> None:
        """Adds rows of a series, which become parts of it as they grow; `size` is about how many bytes they are."""
        self._rows.setdefault(series, []).extend(rows)
        self._sizes[series] = self._sizes.get(series, 0) + size
        if self._sizes[series] >= _PART_BYTES or len(self._rows[series]) >= _PART_ROWS:
            self._cut(series)

    def copy(self, name: str, path: Path) -> None:
        """Adds a file as it is."""
        digest = hashlib.sha256()
        with path.open("rb") as source:
            while block := source.read(1 << 20):
                digest.update(block)
            size = source.tell()
            source.seek(0)
            member = tarfile.TarInfo(name)
            member.size, member.mode = size, 0o600
            self._tar.addfile(member, source)
        self._members.append({"name": name, "size": size, "sha256": digest.hexdigest(), "rows": 0})

    def finish(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the manifest, makes all of it durable and gives the file its name; gives the manifest."""
        for series in list(self._rows):
            self._cut(series)
        manifest = {"format": FORMAT, **facts, "rows": dict(sorted(self._counts.items())), "members": self._members}
        raw = json.dumps(manifest, indent=1).encode()
        self._put(_MANIFEST, raw)
        self._put(_SUM, hashlib.sha256(raw).hexdigest().encode() + b"\n")
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._fresh.rename(self.path)
        sync(self.path.parent)
        return manifest

    def _cut(self, series: str) -> None:
        rows = self._rows.pop(series)
        self._sizes.pop(series, None)
        if not rows:
            return
        raw = zlib.compress(_msgpack.packb(rows, use_bin_type=True), 1)
        self._parts[series] = number = self._parts.get(series, 0) + 1
        name = f"{series}/{number:06}"
        self._put(name, raw)
        self._members.append(
            {"name": name, "size": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "rows": len(rows)}
        )
        self._counts[series] = self._counts.get(series, 0) + len(rows)

    def _put(self, name: str, raw: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(raw), 0o600
        self._tar.addfile(member, io.BytesIO(raw))


class BackupReader:
    """A backup, checked as a whole before anything of it is used.

    Attributes:
        path: The file.
        manifest: What it says of itself.

    Raises:
        BackupError: It is not there, damaged, incomplete, or of a newer form.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        try:
            with tarfile.open(path, "r:") as tar:
                self.manifest = _manifest(tar, path)
                if self.manifest.get("kind") != kind:
                    raise BackupError(f"{path} is no {kind} but a {self.manifest.get('kind')}")
                for number, member in enumerate(self.manifest["members"]):
                    _check(tar, member, path, number)
        except FileNotFoundError:
            raise BackupError(f"{path} is not there") from None
        except (OSError, EOFError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
            raise BackupError(f"{path} is no backup, or is damaged: {error}; take another backup") from None

    @property
    def rows(self) -> int:
        """The number of rows of every series."""
        return sum(self.manifest["rows"].values())

    def series(self, prefix: str) -> list[str]:
        """The series that begin so."""
        return [name for name in self.manifest["rows"] if name.startswith(prefix)]

    def parts(self, series: str) -> Iterator[list[Any]]:
        """The rows of a series, part by part, checked once more as they are read."""
        with tarfile.open(self.path, "r:") as tar:
            for member in self.manifest["members"]:
                if member["name"].rpartition("/")[0] == series:
                    source = tar.extractfile(member["name"])
                    raw = source.read() if source else b""
                    if hashlib.sha256(raw).hexdigest() != member["sha256"]:
                        raise BackupError(f"{self.path} changed while it was read")
                    yield _msgpack.unpackb(zlib.decompress(raw), raw=False, strict_map_key=False)

    def extract(self, prefix: str, to: Path) -> int:
        """Writes the files whose names begin so into a directory; gives their number."""
        done = 0
        with tarfile.open(self.path, "r:") as tar:
            for member in self.manifest["members"]:
                name = str(member["name"])
                if name.startswith(prefix) and (source := tar.extractfile(name)):
                    target = (to / name.removeprefix(prefix)).resolve()
                    if not target.is_relative_to(to.resolve()):
                        raise BackupError(f"{self.path} holds a file of the name {name!r}, which is no place for one")
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                        while block := source.read(1 << 20):
                            out.write(block)
                        out.flush()
                        os.fsync(out.fileno())
                    done += 1
        return done


def _manifest(tar: tarfile.TarFile, path: Path) -> dict[str, Any]:
    parts = []
    for name in (_MANIFEST, _SUM):
        try:
            source = tar.extractfile(name)
        except KeyError:
            raise BackupError(f"{path} is incomplete: it has no {name}; take another backup") from None
        parts.append(source.read() if source else b"")
    if hashlib.sha256(parts[0]).hexdigest().encode() != parts[1].strip():
        raise BackupError(f"{path} is damaged: its manifest does not have its checksum; take another backup")
    manifest: dict[str, Any] = json.loads(parts[0])
    if manifest["format"] > FORMAT:
        raise BackupError(
            f"{path} has the form {manifest['format']}, this version reads {FORMAT}: restore it with the version that"
            f" made it ({manifest.get('version', 'a newer one')}) or a later one"
        )
    return manifest


def _check(tar: tarfile.TarFile, member: Mapping[str, Any], path: Path, number: int) -> None:
    digest = hashlib.sha256()
    try:
        source = tar.extractfile(member["name"])
    except KeyError:
        raise BackupError(f"{path} is incomplete: it has no {member['name']}; take another backup") from None
    size = 0
    while source and (block := source.read(1 << 20)):
        digest.update(block)
        size += len(block)
    if size != member["size"] or digest.hexdigest() != member["sha256"]:
        raise BackupError(
            f"{path} is damaged: part {number + 1}, {member['name']}, does not have its checksum; take another backup"
        )


def sync(path: Path) -> None:
    """Makes a directory's entries durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
