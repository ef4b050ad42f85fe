"""The shards of a directory of vectors: what they hold, how they are made and opened, and what is written to all.

`main` has every point's payload and terms. Dense vectors lie in a shard of their own for each set of models,
`dense-<hash>`, so that another model starts with an empty one beside it, and nothing but vectors is made anew. A shard
of a model that is not in use gets no new vectors, but loses what is removed or replaced: going back to that model is
then only filling up what is missing, and what was erased is nowhere.

A shard that was rewritten (`edge_vacuum`) lies in a directory of its own, `<name>.<8 hex digits>`, and its name is a link to it:
so the new one takes the place of the old one at once, without being opened again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import qdrant_edge as qe

from memoryos_server.stores.frames import LEXICAL

_LAYOUT = 2
_MAIN = "main"
_DENSE = "dense-"
_NAME = re.compile(rf"{_MAIN}|{_DENSE}[0-9a-f]{{16}}")
_NUMBER = re.compile("[0-9a-f]{8}")
_FIRST = "00000000"
"""What a directory that had a shard's own name is called while the first rewritten one takes its place."""

_MOMENT = 0.005
"""Seconds that are waited at once for a directory to be deleted."""

# In kilobytes of a segment. So high that no graph index is ever built: flat search is exact, fast enough at embedded
# sizes, and building a graph would stop the process for half a minute.
_NEVER = 10**9

_SUBJECT = {"s": qe.KeywordIndexParams(is_tenant=True), "ts": qe.FloatIndexParams()}
_MAIN_INDEXES = {
    **_SUBJECT,
    "n": qe.KeywordIndexParams(),
    "q": qe.IntegerIndexParams(lookup=False, range=True),
    "a": qe.IntegerIndexParams(lookup=True, range=False),
    "y": qe.KeywordIndexParams(),
    "g": qe.KeywordIndexParams(),
    "src": qe.KeywordIndexParams(),
    "te": qe.FloatIndexParams(),
    "cr": qe.FloatIndexParams(),
}
_DENSE_INDEXES = {**_SUBJECT, "y": qe.KeywordIndexParams(), "te": qe.FloatIndexParams()}


class LayoutDiffersError(Exception):
    """The directory is laid out in a way that this version does not read; the message says what to do."""


class Shards:
    """The shards of a directory, open.

    Attributes:
        main: Payloads and terms.
        dense: The dense vectors of the models in use, or None if there is no model.
        sizes: Their names -> dimensions.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        main: qe.EdgeShard,
        dense: qe.EdgeShard | None,
        sizes: Mapping[str, int],
        old: Mapping[Path, qe.EdgeShard],
    ) -> None:
        """Keeps the open shards; `name` is that of the dense one."""
        self._directory = directory
        self._name = name
        self.main = main
        self.dense = dense
        self.sizes = dict(sizes)
        self._old = dict(old)
        self._unflushed: set[int] = set()
        self._rewriting: tuple[str, qe.EdgeShard, qe.EdgeShard, Path] | None = None
        self._leaving: dict[Path, threading.Thread] = {}

    @classmethod
    def open(cls, directory: Path, sizes: Mapping[str, int], fingerprint: str) -> Shards:
        """The shards of a directory, made where they are not there.

        Args:
            directory: Where they lie.
            sizes: The names of dense vectors -> their dimensions.
            fingerprint: Tells models of the same names and dimensions apart.

        Raises:
            LayoutDiffersError: This version does not read the directory.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check(directory)
        _tidy(directory)
        wanted = json.dumps([fingerprint, dict(sorted(sizes.items()))])
        name = _DENSE + hashlib.blake2b(wanted.encode(), digest_size=8).hexdigest()
        main = _open(directory / _MAIN, {}, _MAIN_INDEXES)
        dense = _open(directory / name, sizes, _DENSE_INDEXES) if sizes else None
        there = [path for path in sorted(directory.glob(_DENSE + "*")) if _NAME.fullmatch(path.name)]
        old = {path: _load(path) for path in there if path.name != name or dense is None}
        return cls(directory, name, main, dense, sizes, old)

    def named(self) -> dict[str, tuple[qe.EdgeShard, dict[str, int]]]:
        """Every shard by the name of its directory, `main` first, with the dimensions of its dense vectors."""
        shards = {_MAIN: self.main} | ({self._name: self.dense} if self.dense is not None else {})
        shards |= {path.name: shard for path, shard in sorted(self._old.items())}
        return {name: (shard, _sizes(self._directory / name)) for name, shard in shards.items()}

    def made(self, name: str, sizes: Mapping[str, int]) -> qe.EdgeShard:
        """The shard of a name, made as one of models not in use if it is not there.

        Raises:
            ValueError: No shard has such a name, or it has other dimensions.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"no shard is named {name!r}")
        if name not in self.named():
            path = self._directory / name
            self._old[path] = _open(path, sizes, _DENSE_INDEXES)
        shard, there = self.named()[name]
        if there != dict(sizes):
            raise ValueError(f"the shard {name} has other vectors")
        return shard

    @property
    def old(self) -> int:
        """The number of dense shards of models that are not in use."""
        return len(self._old)

    def write(self, shard: qe.EdgeShard, operation: qe.UpdateOperation) -> None:
        """Does an operation on one of the shards; every write goes this way, so that `flush` knows what there is to do."""
        self._unflushed.add(id(shard))
        shard.update(operation)
        if self._rewriting is not None and self._rewriting[1] is shard:
            try:
                self._rewriting[2].update(operation)
            except Exception:  # of a point that is not copied yet: the copying begins anew
                self.abandon()

    def remove(self, ids: Sequence[str]) -> None:
        """Removes points from every shard."""
        if ids:
            operation = qe.UpdateOperation.delete_points(list(ids))
            for shard in self._all():
                self.write(shard, operation)

    def remove_matching(self, chosen: qe.Filter) -> None:
        """Removes the points that a filter over `s` and `ts` matches from every shard."""
        operation = qe.UpdateOperation.delete_points_by_filter(chosen)
        for shard in self._all():
            self.write(shard, operation)

    def forget_vectors(self, ids: Sequence[str]) -> None:
        """Removes what the dense shards have of points: their text is another now."""
        if ids:
            operation = qe.UpdateOperation.delete_points(list(ids))
            for shard in self._all()[:-1]:
                self.write(shard, operation)

    def flush(self) -> None:
        """Makes everything durable: `main` last, so that what it has after a crash the others have too.

        A shard that nobody wrote to is left alone: flushing it costs milliseconds in which nobody is answered.
        """
        for shard in self._all():
            if id(shard) in self._unflushed:
                shard.flush()
                self._unflushed.discard(id(shard))

    def making(self, name: str) -> Generator[None, None, Path]:
        """Makes an empty shard like that of a name, in parts of some 20 ms; returns where it lies.

        Raises:
            KeyError: There is no such shard.
        """
        _, sizes = self.named()[name]
        path = self._directory / f"{name}.{secrets.token_hex(4)}"
        yield from _make(path, sizes, _DENSE_INDEXES if sizes else _MAIN_INDEXES)
        return path

    def rewrite(self, name: str, path: Path) -> tuple[qe.EdgeShard, qe.EdgeShard]:
        """Begins to rewrite a shard: it, and the empty one of a path, which from now on gets every write that it gets.

        Raises:
            KeyError: There is no such shard.
        """
        self.abandon()
        shard, _ = self.named()[name]
        fresh = _load(path)
        self._rewriting = name, shard, fresh, path
        return shard, fresh

    def is_rewriting(self, fresh: qe.EdgeShard) -> bool:
        """Whether what `rewrite` gave still gets every write."""
        return self._rewriting is not None and self._rewriting[2] is fresh

    def abandon(self) -> None:
        """Gives up what `rewrite` began."""
        if self._rewriting is not None:
            _, _, fresh, path = self._rewriting
            self._rewriting = None
            fresh.close()
            _discard(path)

    def replace(self) -> None:
        """Puts the rewritten shard, which is complete and flushed, in the place of the old one; `is_gone` says when that is.

        Raises:
            ValueError: None is being rewritten.
        """
        if self._rewriting is None:
            raise ValueError("no shard is being rewritten")
        name, shard, fresh, path = self._rewriting
        self._rewriting = None
        link, old = self._directory / name, (self._directory / name).resolve()
        shard.close()
        self._unflushed.discard(id(shard))
        if not link.is_symlink():
            old = link.with_name(f"{name}.{_FIRST}")
            link.rename(old)
        new = link.with_name(f"{name}.link.new")
        new.unlink(missing_ok=True)
        new.symlink_to(path.name)
        new.replace(link)
        _sync(self._directory)
        if shard is self.main:
            self.main = fresh
        elif shard is self.dense:
            self.dense = fresh
        else:
            self._old[link] = fresh
        for away in (_taken_away(old), *self._leaving):  # what could not be deleted before is tried again
            self._leaving[away] = _deleting(away)

    def is_gone(self) -> bool:
        """Whether nothing is left of the shards that were replaced; waits a moment for it.

        Raises:
            OSError: One could not be deleted; it is tried again when the next is replaced.
        """
        for away, thread in list(self._leaving.items()):
            thread.join(_MOMENT)
            if thread.is_alive():
                return False
            if away.exists():
                raise OSError("a shard that was replaced could not be deleted")
            del self._leaving[away]
        return True

    def drop_old(self) -> int:
        """Deletes the dense shards of models that are not in use; gives their number."""
        dropped = 0
        while self._old:
            self.abandon()
            path, shard = self._old.popitem()
            shard.close()
            target = path.resolve()
            if path.is_symlink():
                path.unlink()
            _discard(target)
            dropped += 1
        return dropped

    def close(self) -> None:
        """Flushes and lets go of the files."""
        self.abandon()
        self.flush()
        for shard in self._all():
            shard.close()

    def _all(self) -> list[qe.EdgeShard]:
        """Every shard, `main` last."""
        return [*self._old.values(), *([self.dense] if self.dense is not None else []), self.main]


def _discard(path: Path) -> None:
    """Deletes a shard's directory."""
    shutil.rmtree(_taken_away(path))


def _taken_away(path: Path) -> Path:
    """A shard's directory under another name: a half-deleted one must not be opened as a shard."""
    away = path.with_name(path.name + ".new")
    shutil.rmtree(away, ignore_errors=True)
    path.rename(away)
    return away


def _deleting(away: Path) -> threading.Thread:
    thread = threading.Thread(target=shutil.rmtree, args=(away,), kwargs={"ignore_errors": True})
    thread.start()
    return thread


def _tidy(directory: Path) -> None:
    """Removes what was half made, or half deleted, and what was to take a shard's place but does not."""
    for left in directory.glob("*.new"):
        if left.is_symlink():
            left.unlink()
        else:
            shutil.rmtree(left, ignore_errors=True)
    for path in sorted(directory.iterdir()):
        name, _, number = path.name.partition(".")
        if not _NAME.fullmatch(name) or not _NUMBER.fullmatch(number):
            continue
        link = directory / name
        if number == _FIRST and not link.exists():
            path.rename(link)  # the death of a process came between taking it away and putting another in its place
        elif link.resolve() != path.resolve():
            _discard(path)


def _check(directory: Path) -> None:
    marker = directory / "layout.json"
    found = 1 if (directory / "shard").exists() else None
    if marker.exists():
        found = json.loads(marker.read_text("utf-8")).get("version")
    if found is None:
        fresh = directory / "layout.json.new"
        fresh.write_text(json.dumps({"version": _LAYOUT}), "utf-8")
        _sync(fresh)
        fresh.rename(marker)
        _sync(directory)
    elif found != _LAYOUT:
        raise LayoutDiffersError(
            f"the index in {directory.resolve()} has layout {found}, but this version reads layout {_LAYOUT}:"
            " run the version that made it, or use another data directory"
        )


def _config(sizes: Mapping[str, int]) -> qe.EdgeConfig:
    # Half precision: half the memory, 0.6 times the time of a query, and a cosine off by some 0.0002.
    params = {
        name: qe.EdgeVectorParams(size=size, distance=qe.Distance.Cosine, datatype=qe.VectorStorageDatatype.Float16)
        for name, size in sizes.items()
    }
    terms = None if sizes else {LEXICAL: qe.EdgeSparseVectorParams(modifier=qe.Modifier.Idf)}
    # One search thread: there is one segment, and handing it over costs more than it brings.
    return qe.EdgeConfig(
        vectors=params or None,
        sparse_vectors=terms,
        optimizers=qe.EdgeOptimizersConfig(indexing_threshold=_NEVER),
        max_search_threads=1,
        wal_enabled=False,
    )


def _open(path: Path, sizes: Mapping[str, int], indexes: Mapping[str, object]) -> qe.EdgeShard:
    if not path.exists():
        for _ in _make(path, sizes, indexes):
            pass
    return _load(path)


def _make(path: Path, sizes: Mapping[str, int], indexes: Mapping[str, object]) -> Iterator[None]:
    """Makes an empty shard, and comes back between the parts of it, each of which waits for the disk."""
    # Made aside and renamed, so that a crash midway leaves no half-made shard under the name.
    fresh = path.with_name(path.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    shard = qe.EdgeShard.create(str(fresh), _config(sizes))
    try:
        for field, params in indexes.items():
            yield
            shard.update(qe.UpdateOperation.create_field_index(field, params))  # type: ignore[arg-type]  # a wide union
        yield
        shard.flush()
    except GeneratorExit:  # nobody wants it any more
        shard.close()
        shutil.rmtree(fresh)
        raise
    shard.close()
    (fresh / "vectors.json").write_text(json.dumps(dict(sorted(sizes.items()))), "utf-8")
    _sync(fresh / "vectors.json")
    _sync(fresh)
    fresh.rename(path)
    _sync(path.parent)
    yield


def _load(path: Path) -> qe.EdgeShard:
    # The engine's own rewriting, killed, leaves half-made segments behind; they are copies.
    shutil.rmtree(path / "temp_segments", ignore_errors=True)
    # By its own name: the engine goes on using it when another takes its place.
    return qe.EdgeShard.load(str(path.resolve()), _config(_sizes(path)))


def _sizes(path: Path) -> dict[str, int]:
    return {str(name): int(size) for name, size in json.loads((path / "vectors.json").read_text("utf-8")).items()}


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
