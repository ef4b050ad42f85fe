"""Content at rest is sealed here and nowhere else, so that neither domain nor engines know of it.

A subject's data key (32 random bytes, kept wrapped in the keyring) is split into three that cannot be told from one
another: one encrypts, one hashes values for equality, one hashes search terms. Destroying the data key therefore makes
content unreadable and its hashes meaningless at once. Must not know of stores or engines.
"""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memoryos_server.domain.ports import Subject

_FORMAT = b"\x01"
_NONCE = 12
_TAG = 16


class SealBroken(Exception):
    """Something sealed cannot be opened: another key, another place, or damage. Never says what was in it."""


def framed(*parts: str) -> bytes:
    """The parts, each behind its length, so that none can run over into the next."""
    # A list, for a generator takes twice as long, and every sealed record comes by here.
    return b"".join([len(raw).to_bytes(4) + raw for raw in [part.encode() for part in parts]])


class Box:
    """AES-256-GCM under one key: `format byte + nonce + ciphertext + tag`.

    Args:
        key: 32 bytes.
        sealing: False leaves everything readable; only tests that prove sealing want that.
    """

    __slots__ = ("_aes",)

    def __init__(self, key: bytes, *, sealing: bool = True) -> None:
        self._aes = AESGCM(key) if sealing else None

    def seal(self, place: bytes, text: bytes) -> bytes:
        """Encrypts `text` so that it opens only at `place` (the additional authenticated data)."""
        if self._aes is None:
            return text
        # Random 96-bit nonces are safe for 2**32 records of one key; a subject does not get there.
        nonce = os.urandom(_NONCE)
        return _FORMAT + nonce + self._aes.encrypt(nonce, text, place)

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """What was sealed at `place`.

        Raises:
            SealBroken: It was sealed elsewhere, under another key, or is damaged.
        """
        if self._aes is None:
            return sealed
        if sealed[:1] != _FORMAT or len(sealed) < len(_FORMAT) + _NONCE + _TAG:
            raise SealBroken("not a sealed record of this format")
        try:
            return self._aes.decrypt(sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :], place)
        except InvalidTag:
            raise SealBroken("a sealed record does not open with this key at this place") from None


class Sealer:
    """Seals and hashes for one subject.

    Args:
        key: The subject's data key, 32 bytes.
        tenant_id: The subject's tenant.
        subject_id: The subject's id.
        sealing: False leaves text readable; hashes stay keyed.
    """

    __slots__ = ("_box", "_equality", "_place", "_term")

    def __init__(self, key: bytes, tenant_id: str, subject_id: str, *, sealing: bool = True) -> None:
        self._box = Box(derive(key, "seal"), sealing=sealing)
        self._place = framed(tenant_id, subject_id)
        # Copying a keyed hasher saves hashing the key block again for every value.
        self._equality = hashlib.blake2b(key=derive(key, "equality"), digest_size=16)
        self._term = hashlib.blake2b(key=derive(key, "term"), digest_size=4)

    def seal(self, record_id: str, text: bytes) -> bytes:
        """Encrypts `text` as the record `record_id` of this subject; it opens as no other."""
        return self._box.seal(self._place + framed(record_id), text)

    def open(self, record_id: str, sealed: bytes) -> bytes:
        """The text of the record `record_id`.

        Raises:
            SealBroken: It is another record's, another subject's, or damaged.
        """
        return self._box.open(self._place + framed(record_id), sealed)

    def equality(self, kind: str, value: str) -> str:
        """A keyed hash, 32 hex digits: equal for equal values of one kind, and telling nothing else."""
        digest = self._equality.copy()
        digest.update(framed(kind, value))
        return digest.hexdigest()

    def term(self, token: str) -> int:
        """A search term as a number, 0..2**32-1, that means something only for this subject."""
        digest = self._term.copy()
        digest.update(token.encode())
        return int.from_bytes(digest.digest())


class Sealers(Protocol):
    """Where the sealer of a subject comes from. Cached, bounded."""

    async def sealer(self, subject: Subject) -> Sealer:
        """The subject's sealer.

        Raises:
            Stale: The subject's epoch is over, its key is destroyed.
            BackendDown: The key is not cached and the store does not answer.
        """


def derive(key: bytes, purpose: str) -> bytes:
    """32 bytes that follow from a key and a purpose, and tell nothing of the key or of other purposes."""
    return hashlib.blake2b(purpose.encode(), key=key, digest_size=32, person=b"memoryos").digest()
