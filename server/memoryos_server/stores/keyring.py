"""The master key, and what it wraps.

The master key does one thing: it wraps other keys (the data key of each subject, the store's own secret). Nothing is
hashed or encrypted with it directly, so that replacing it means wrapping those again and nothing else. It is never kept
beside the data: an embedded store's key lies in a directory of its own, in a file named by the key's id.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from memoryos_server.stores.sealing import Box, SealBroken, derive, framed

KEY_BYTES = 32
"""The length of every key here."""

MAC_BYTES = 32
"""The length of a keyed hash that tells what was written here from what was not."""


class KeyringError(RuntimeError):
    """A master key is missing, malformed, badly placed, or not the one of this store. Starting cannot go on."""


@dataclass(frozen=True, slots=True)
class MasterKey:
    """A key that wraps keys.

    Attributes:
        key: 32 bytes.
    """

    key: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """16 hex digits that name the key and tell nothing of it."""
        return hashlib.blake2b(self.key, digest_size=8, person=b"memoryos-key-id").hexdigest()

    def wrap(self, purpose: str, owner: str, key: bytes) -> bytes:
        """A key under this one: the master key's id, then the sealed key. It opens for this purpose and owner only."""
        return bytes.fromhex(self.id) + Box(self.key).seal(framed(purpose, owner), key)

    def unwrap(self, purpose: str, owner: str, wrapped: bytes) -> bytes:
        """The key that `wrap` took.

        Raises:
            KeyringError: It was wrapped by another master key (both are named), for another owner, or is damaged.
        """
        used = wrapping_id(wrapped)
        if used != self.id:
            raise KeyringError(f"a {purpose} key is wrapped by master key {used}, not by {self.id}")
        try:
            return Box(self.key).open(framed(purpose, owner), wrapped[8:])
        except SealBroken:
            raise KeyringError(f"a {purpose} key was moved or damaged: master key {self.id} does not open it") from None


class MasterKeys:
    """Where master keys come from: the setting, else files in a directory outside the data.

    Args:
        configured: The setting `security.master_key`, 64 hex digits, or "".
        key_dir: The setting `security.key_dir`; None where keys are only configured (live stores).
        data_dir: The data directory, which must not hold the keys; None if there is none.
        previous: The setting `security.previous_master_key`, which opens what was wrapped before, or "".

    Raises:
        KeyringError: A setting is malformed, or the key directory lies in the data directory.
    """

    def __init__(
        self,
        configured: str,
        key_dir: str | Path | None,
        data_dir: str | Path | None = None,
        *,
        previous: str = "",
    ) -> None:
        self._configured: MasterKey | None = None
        self._previous: MasterKey | None = None
        if configured:
            self._configured = _parse(configured, "security.master_key")
        if previous:
            self._previous = _parse(previous, "security.previous_master_key")
        self._dir = Path(key_dir).expanduser().resolve() if key_dir else None
        if data_dir is not None and self._dir is not None and not configured:
            data = Path(data_dir).expanduser().resolve()
            if self._dir.is_relative_to(data):
                raise KeyringError(
                    f"security.key_dir {self._dir} lies in the data directory {data}; "
                    "keys must be kept apart from what they lock"
                )

    def get(self, key_id: str) -> MasterKey:
        """The master key of that id.

        Raises:
            KeyringError: It is not there; the message names the key id and the directory.
        """
        if self._previous is not None and self._previous.id == key_id:
            return self._previous
        if self._configured is not None:
            if self._configured.id != key_id:
                raise KeyringError(
                    f"the data is locked with master key {key_id}, but security.master_key is {self._configured.id}"
                )
            return self._configured
        if self._dir is None:
            raise KeyringError(
                f"the data is locked with master key {key_id}: set security.master_key to it (MEMORYOS_SECURITY__MASTER_KEY_FILE "
                f"takes the file {key_id}.key that an embedded store has made in its security.key_dir)"
            )
        path = self._dir / f"{key_id}.key"
        try:
            mode = path.stat().st_mode
            text = path.read_text("ascii").strip()
        except FileNotFoundError:
            raise KeyringError(
                f"the data is locked with master key {key_id}, which is not in {self._dir}: "
                f"put {path.name} there, or set security.master_key"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise KeyringError(f"master key {key_id} in {self._dir} cannot be read: {error}") from None
        if stat.S_IMODE(mode) & 0o077:
            raise KeyringError(f"{path} is open to others: chmod 600 {path}")
        key = _parse(text, str(path))
        if key.id != key_id:
            raise KeyringError(f"{path} holds master key {key.id}, not {key_id}")
        return key

    @property
    def configured(self) -> bool:
        """Whether new stores get the key of the settings, and not one that is made for them."""
        return self._configured is not None

    def new(self) -> MasterKey:
        """The configured key, else a new one, durable in the directory when this returns.

        Raises:
            KeyringError: The directory cannot be used; the message names it.
        """
        if self._configured is not None:
            return self._configured
        if self._dir is None:
            raise KeyringError("security.master_key must be set: these stores have no key directory")
        key = MasterKey(os.urandom(KEY_BYTES))
        path = self._dir / f"{key.id}.key"
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stat.S_IMODE(self._dir.stat().st_mode) & 0o022:
                raise KeyringError(f"others may write to security.key_dir {self._dir}: chmod 700 {self._dir}")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(key.key.hex() + "\n")
                file.flush()
                os.fsync(file.fileno())
            directory = os.open(self._dir, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise KeyringError(f"no master key can be made in security.key_dir {self._dir}: {error}") from None
        return key

    def discard(self, key: MasterKey) -> None:
        """Removes a key that `new` made and that nothing was wrapped with. A configured key stays."""
        if self._configured is None and self._dir is not None:
            with contextlib.suppress(FileNotFoundError):
                (self._dir / f"{key.id}.key").unlink()


class Wrapping:
    """How a store's keys are wrapped: new ones by the present master key, those of before by the one that each names.

    Args:
        keys: Where master keys come from.
        present: The one that wraps new keys.
    """

    def __init__(self, keys: MasterKeys, present: MasterKey) -> None:
        self.keys = keys
        self._present = present
        self._known = {present.id: present}

    @property
    def present(self) -> MasterKey:
        """The master key that wraps new keys."""
        return self._present

    @property
    def id(self) -> str:
        """The id of that key."""
        return self._present.id

    def use(self, key_id: str) -> None:
        """Wraps new keys with another master key from now on.

        Raises:
            KeyringError: It is not there.
        """
        self._present = self._by_id(key_id)

    def wrap(self, purpose: str, owner: str, key: bytes) -> bytes:
        """A key under the present master key."""
        return self._present.wrap(purpose, owner, key)

    def unwrap(self, purpose: str, owner: str, wrapped: bytes) -> bytes:
        """The key that `wrap` took, whichever master key was present then.

        Raises:
            KeyringError: That master key is not there, or the wrapped key is another's or damaged.
        """
        return self._by_id(wrapping_id(wrapped)).unwrap(purpose, owner, wrapped)

    def _by_id(self, key_id: str) -> MasterKey:
        found = self._known.get(key_id)
        if found is None:
            found = self._known[key_id] = self.keys.get(key_id)
        return found


def wrapping_id(wrapped: bytes) -> str:
    """The id of the master key that a key is wrapped by."""
    return wrapped[:8].hex()


class StoreSecrets:
    """What the store itself hashes and seals with, all from one random secret that outlives the master key.

    Args:
        secret: 32 bytes.
        sealing: False leaves records readable; hashes stay keyed.
    """

    __slots__ = ("_box", "_hash", "_mac", "_sign")

    def __init__(self, secret: bytes, *, sealing: bool = True) -> None:
        self._box = Box(derive(secret, "store seal"), sealing=sealing)
        self._hash = hashlib.blake2b(key=derive(secret, "store index"), digest_size=20)
        self._mac = hashlib.blake2b(key=derive(secret, "store mac"), digest_size=MAC_BYTES)
        self._sign = hmac.new(derive(secret, "store sign"), digestmod=hashlib.sha256)

    def hash(self, purpose: str, *parts: str) -> str:
        """A keyed hash, 40 hex digits: by it things are found whose names are not kept."""
        digest = self._hash.copy()
        digest.update(framed(purpose, *parts))
        return digest.hexdigest()

    def sign(self, purpose: str, *parts: str) -> str:
        """An HMAC-SHA-256, 64 hex digits: only who has the master key can make one."""
        digest = self._sign.copy()
        digest.update(framed(purpose, *parts))
        return digest.hexdigest()

    def mac(self, purpose: str, place: str, *parts: bytes) -> bytes:
        """`MAC_BYTES` bytes that only who has the master key can make, for parts that lie at one place."""
        digest = self._mac.copy()
        digest.update(b"".join([framed(purpose, place), *(len(part).to_bytes(4) + part for part in parts)]))
        return digest.digest()

    def seal(self, purpose: str, record_id: str, text: bytes) -> bytes:
        """Encrypts a record that belongs to no subject."""
        return self._box.seal(framed(purpose, record_id), text)

    def open(self, purpose: str, record_id: str, sealed: bytes) -> bytes:
        """What `seal` took.

        Raises:
            SealBroken: It is another record's, or damaged.
        """
        return self._box.open(framed(purpose, record_id), sealed)


def _parse(text: str, source: str) -> MasterKey:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyringError(f"{source} is not 64 hex digits")
    return MasterKey(key)
