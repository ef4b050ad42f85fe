"""The signed heads of chains, kept apart from them: small files in a directory beside the master key.

A chain whose end is cut off, or that is an older state of itself, adds up all the same; only somebody who remembers how long it
was can tell. So each server keeps of each chain the newest head that it has seen, signed with a key that only the master key
gives. HMAC-SHA-256 and not a pair of keys, because who checks is who signs: the operator, who has the master key anyway.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from memoryos_server.domain.core.time import utc_now
from memoryos_server.stores.keyring import StoreSecrets

_SUFFIX = ".head"


class HeadBrokenError(RuntimeError):
    """A signed head was damaged or made by somebody else; the message names its file."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A head as it was signed.

    Attributes:
        tenant_id: Whose chain.
        count: How many links it had.
        hash: What they added up to.
        at: When it was signed, RFC 3339.
    """

    tenant_id: str
    count: int
    hash: bytes
    at: str


def directory_of(key_dir: str | Path, store_id: str) -> Path:
    """Where the signed heads of a store are kept: each store has a directory of its own beside the keys."""
    return Path(key_dir).expanduser() / "heads" / store_id


def put(directory: Path, files: Mapping[str, bytes]) -> None:
    """Writes files, each as a whole or not at all, durable when this returns.

    Raises:
        OSError: One cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, raw in files.items():
        path = directory / Path(name).name
        # A name of its own, for several servers may write here.
        fd, fresh = tempfile.mkstemp(".new", path.stem, directory)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            Path(fresh).replace(path)
        except OSError:
            Path(fresh).unlink(missing_ok=True)
            raise
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_back(directory: Path, files: Mapping[str, bytes]) -> None:
    """Puts the heads of a backup in the place of those that are there, which are kept under another name.

    Raises:
        OSError: The directory cannot be used.
    """
    if directory.exists():
        directory.rename(directory.with_name(f"{directory.name}.before-{utc_now():%Y%m%dT%H%M%S.%f}"))
    put(directory, files)


class SignedHeads:
    """The signed heads of one store.

    Args:
        key_dir: The directory of keys; in it, each store has a directory of its own.
        store_id: Which store.
        secrets: What signs.
    """

    def __init__(self, key_dir: str | Path, store_id: str, secrets: StoreSecrets) -> None:
        self._secrets = secrets
        self.directory = directory_of(key_dir, store_id)

    def path(self, tenant_id: str) -> Path:
        """The file of a tenant."""
        return self.directory / f"{self._secrets.hash('audit', tenant_id)}{_SUFFIX}"

    def read(self, tenant_id: str) -> Signed | None:
        """The head of a tenant's chain, or None if none is kept here.

        Raises:
            HeadBrokenError: It is not as it was signed.
            OSError: It cannot be read.
        """
        path = self.path(tenant_id)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        signed = self._opened(path, raw)
        if signed.tenant_id != tenant_id:
            raise HeadBrokenError(f"{path} is the signed head of another tenant")
        return signed

    def tenants(self) -> list[str]:
        """Whose heads are kept here, as far as they can be opened.

        Raises:
            OSError: The directory cannot be read.
        """
        found = []
        for path in sorted(self.directory.glob(f"*{_SUFFIX}")):
            with contextlib.suppress(HeadBrokenError):
                found.append(self._opened(path, path.read_bytes()).tenant_id)
        return found

    def write(self, signed: Signed) -> None:
        """Keeps a head, durable when this returns, in the place of the one before, unless that is of a longer chain.

        Raises:
            OSError: It cannot be written.
        """
        with contextlib.suppress(HeadBrokenError):
            before = self.read(signed.tenant_id)
            if before is not None and before.count > signed.count:
                return  # another server, with the same directory, was faster
        put(self.directory, {self.path(signed.tenant_id).name: self._line(signed)})

    def files(self) -> dict[str, bytes]:
        """Every file by its name, for a backup."""
        return {path.name: path.read_bytes() for path in sorted(self.directory.glob(f"*{_SUFFIX}"))}

    def _opened(self, path: Path, raw: bytes) -> Signed:
        try:
            fields: dict[str, Any] = orjson.loads(raw)
            signed = Signed(fields["tenant"], fields["count"], bytes.fromhex(fields["hash"]), fields["at"])
            if not hmac.compare_digest(self._line(signed), raw):
                raise HeadBrokenError(f"{path} is no head that this store's key has signed")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HeadBrokenError(f"{path} is damaged: it is no signed head") from None
        return signed

    def _line(self, signed: Signed) -> bytes:
        parts = (signed.tenant_id, str(signed.count), signed.hash.hex(), signed.at)
        signature = self._secrets.sign("audit head", *parts)
        fields = {"tenant": parts[0], "count": signed.count, "hash": parts[2], "at": parts[3], "signature": signature}
        return orjson.dumps(fields) + b"\n"
