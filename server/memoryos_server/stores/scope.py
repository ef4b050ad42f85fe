"""The only maker of store keys and filters.

Every key of a subject, and the streams of its partition, carry the partition's hash tag `{pNNN}`, so that all of them
lie in one slot and one script can change them together. What belongs to the whole store carries `{memoryos}`. No key is
made of anything a person chose: ids are random, the rest are keyed hashes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from memoryos_server.domain.ports import Subject
from memoryos_server.stores.sealing import Sealer

PARTITIONS = 256
"""The number of partitions. It is stored with the data and cannot change for a store."""

MANIFEST = "{memoryos}:manifest"
"""Hash: what the store is and who may open it."""

STORE_KEYRING = "{memoryos}:keyring"
"""Hash: the store's own wrapped secret and the master key's id. Backed up with the keyrings, not content."""

API_KEYS = "{memoryos}:apikeys"
"""Hash: keyed hash of an API key -> its sealed record."""

API_KEY_IDS = "{memoryos}:apikey_ids"
"""Hash: an API key's id -> its keyed hash."""

API_KEY_USES = "{memoryos}:apikey_uses"
"""Hash: an API key's id -> Unix seconds of its last use."""

CHANGES = "{memoryos}:changes"
"""Channel: what replicas must forget. Messages are `<kind> <name>`."""

_SUBJECT_ID = re.compile(r"[0-9a-f]{32}")


def is_subject_id(value: str) -> bool:
    """Whether a text has the form of a subject id."""
    return _SUBJECT_ID.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Partition:
    """The keys that a partition's subjects share.

    Attributes:
        number: 0..255.
    """

    number: int

    @property
    def tag(self) -> str:
        """The hash tag, such as `{p007}`."""
        return f"{{p{self.number:03d}}}"

    @property
    def lookup(self) -> str:
        """Hash: keyed hash of (tenant, user) -> subject id."""
        return f"{self.tag}:lookup"

    @property
    def keyring(self) -> str:
        """Hash: subject id -> wrapped data key. A backup takes keys of this name apart from all others."""
        return f"{self.tag}:keyring"

    @property
    def queue(self) -> str:
        """Stream: accepted turns whose index entry is not yet durable."""
        return f"{self.tag}:queue"

    @property
    def audit(self) -> str:
        """Stream: the outbox of recorded events."""
        return f"{self.tag}:audit"

    def audit_batch(self, nonce: str) -> str:
        """String with a short life: this batch of events is written."""
        return f"{self.tag}:audit_batch:{nonce}"

    def subject(self, subject_id: str) -> str:
        """Hash: a subject's record: `epoch`, `lookup`, `who` (sealed).

        Raises:
            ValueError: It is no subject id of this partition.
        """
        if not is_subject_id(subject_id) or int(subject_id[:2], 16) != self.number:
            raise ValueError("not a subject id of this partition")
        return f"{self.tag}:subject:{subject_id}"


def partition_of(hexadecimal: str) -> Partition:
    """The partition that a subject id or a keyed hash (hex) falls into: its first byte."""
    return Partition(int(hexadecimal[:2], 16))


class Scope:
    """The keys and filters of one subject.

    Args:
        subject: The subject.
        sealer: Its sealer, for what is found by equality.
    """

    __slots__ = ("_sealer", "partition", "subject")

    def __init__(self, subject: Subject, sealer: Sealer) -> None:
        self.subject = subject
        self.partition = Partition(subject.partition)
        self._sealer = sealer

    @property
    def record(self) -> str:
        """Hash: the subject's record."""
        return self.partition.subject(self.subject.id)

    @property
    def recent(self) -> str:
        """List: the newest turns, sealed, oldest first."""
        return f"{self.partition.tag}:recent:{self.subject.id}"

    def marks(self, day: int) -> str:
        """Hash: the idempotency marks made on a day.

        Args:
            day: Days since 1970-01-01, UTC.
        """
        return f"{self.partition.tag}:marks:{self.subject.id}:{day}"

    def mark(self, event_id: str) -> bytes:
        """The field of an event's idempotency mark: 16 bytes."""
        return bytes.fromhex(self._sealer.equality("event", event_id))

    def session(self, session_id: str) -> str:
        """What stands for a session in filters: a keyed hash, "" for no session."""
        return self._sealer.equality("session", session_id) if session_id else ""

    def filter(self, *, session_id: str | None = None) -> Mapping[str, str]:
        """Payload field -> value that each vector record of this subject, or of one of its sessions, has."""
        match = {"s": self.subject.id}
        if session_id is not None:
            match["n"] = self.session(session_id)
        return match
