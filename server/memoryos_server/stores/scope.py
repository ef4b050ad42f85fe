"""The only maker of store keys and filters.

Every key of a subject, and the streams of its partition, carry the partition's hash tag `{pNNN}`, so that all of them
lie in one slot and one script can change them together. What belongs to the whole store carries `{memoryos}`. No key is
made of anything a person chose: ids are random, the rest are keyed hashes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from memoryos_server.domain.ports import KINDS, Subject
from memoryos_server.stores.sealing import Sealer

PARTITIONS = 256
"""The number of partitions. It is stored with the data and cannot change for a store."""

MANIFEST = "{memoryos}:manifest"
"""Hash: what the store is and who may open it."""

STORE_KEYRING = "{memoryos}:keyring"
"""Hash: the store's own wrapped secret and the master key's id. Backed up with the keyrings, not content."""

MIGRATION = "{memoryos}:migration"
"""Hash: how far a move into this store is; gone once it is complete."""

API_KEYS = "{memoryos}:apikeys"
"""Hash: keyed hash of an API key -> its sealed record."""

API_KEY_IDS = "{memoryos}:apikey_ids"
"""Hash: an API key's id -> its keyed hash."""

API_KEY_USES = "{memoryos}:apikey_uses"
"""Hash: an API key's id -> Unix seconds of its last use."""

DEFENSE_BANS = "{memoryos}:defense:bans"
"""Hash: keyed hash of a place -> its sealed ban."""

DEFENSE_WHITELIST = "{memoryos}:defense:whitelist"
"""Hash: keyed hash of a network -> its sealed entry."""

DEFENSE_COUNTS = "{memoryos}:defense:counts"
"""Hash: `requests` and `blocked`, of all servers."""

RECEIPT_DAYS = 30
"""The most days for which receipts may be kept: so far back an erasure looks for them."""

CHANGES = "{memoryos}:changes"
"""Channel: what replicas must forget. Messages are `<kind> <name>`."""


def defense_writer(writer: str) -> str:
    """String with a short life: the number of the last batch of counts that a server wrote."""
    return f"{{memoryos}}:defense:writer:{writer}"


def usage_tenants(day: int) -> str:
    """Set: the tenants of which usage is kept of a day.

    Args:
        day: Days since 1970-01-01, UTC.
    """
    return f"{{memoryos}}:usage_tenants:{day}"


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
        """Stream: the open entries, accepted work that is not yet durable on the searchable side."""
        return f"{self.tag}:queue"

    @property
    def attempts(self) -> str:
        """Hash: an open entry's stream id -> how often it was tried, and the nonce of the call that counted last."""
        return f"{self.tag}:attempts"

    @property
    def changes(self) -> str:
        """Hash: a change's name -> the sealed change. Apart from the stream, whose pages must stay small."""
        return f"{self.tag}:changes"

    @property
    def dead(self) -> str:
        """Stream: the dead letters."""
        return f"{self.tag}:dead"

    @property
    def dead_marks(self) -> str:
        """Hash: an event's mark -> the stream id of its dead letter; a removed record's `gone` -> place of the removal.

        Removals are kept in it while there are dead letters, which may hold what was removed for longer than marks last.
        """
        return f"{self.tag}:dead_marks"

    @property
    def due(self) -> str:
        """Sorted set: subject id -> Unix seconds from which its fresh turns are due for consolidation."""
        return f"{self.tag}:due"

    @property
    def lease(self) -> str:
        """Hash: `holder`, `token`, `until` (Unix milliseconds of the store's clock)."""
        return f"{self.tag}:lease"

    def done(self, nonce: str) -> str:
        """String with a short life: the call with this nonce was carried out, and what it answered."""
        return f"{self.tag}:done:{nonce}"

    @property
    def audit(self) -> str:
        """Stream: the outbox of recorded events."""
        return f"{self.tag}:audit"

    @property
    def audit_refused(self) -> str:
        """Stream: what stood in the outbox and no server had written like that, the newest thousand, for 90 days."""
        return f"{self.tag}:audit_refused"

    def audit_batch(self, nonce: str) -> str:
        """String with a short life: this batch of events is written, or which one of a writer was the last."""
        return f"{self.tag}:audit_batch:{nonce}"

    @property
    def erasures(self) -> str:
        """Hash: an erasure's id -> its record: its revision, and the rest sealed. Backed up with the keyrings, not content."""
        return f"{self.tag}:erasures"

    @property
    def erasing(self) -> str:
        """Set: the ids of erasures that have not come to their end. Backed up as `erasures`."""
        return f"{self.tag}:erasing"

    @property
    def chains(self) -> str:
        """Hash: a tenant's keyed hash -> the tenant, of the chains that lie in this partition."""
        return f"{self.tag}:chains"

    def chain(self, tenant_hash: str) -> str:
        """Stream: a tenant's chained events that are not in the archive yet; an entry's id is `<number in the chain>-0`."""
        return f"{self.tag}:chain:{tenant_hash}"

    def chain_head(self, tenant_hash: str) -> str:
        """Hash: `count`, `hash`, `archived` and `seal` of a chain, and how far the outbox of each partition was taken into it."""
        return f"{self.tag}:chain_head:{tenant_hash}"

    def usage(self, tenant_hash: str, day: int) -> str:
        """Hash: `key id model` -> what was spent, as numbers; `=writer` -> the number of its last batch.

        Args:
            tenant_hash: The tenant's keyed hash.
            day: Days since 1970-01-01, UTC.
        """
        return f"{self.tag}:usage:{tenant_hash}:{day}"

    def budget(self, key_id: str) -> str:
        """Hash: what an API key has used of its budget."""
        return f"{self.tag}:budget:{key_id}"

    def subject(self, subject_id: str) -> str:
        """Hash: a subject's record: `epoch`, `lookup`, `who` (sealed), `seq` (turns accepted), `rev` (changes), `consent`.

        `consent` is `epoch:1` or `epoch:0`, what was decided last of `data_processing` in that epoch.

        Raises:
            ValueError: It is no subject id of this partition.
        """
        if not is_subject_id(subject_id) or int(subject_id[:2], 16) != self.number:
            raise ValueError("not a subject id of this partition")
        return f"{self.tag}:subject:{subject_id}"

    def fresh(self, subject_id: str) -> str:
        """List: memory ids, 16 bytes each, of a subject's turns that are stored but in no segment yet, oldest first."""
        return f"{self.tag}:fresh:{subject_id}"

    def marks(self, subject_id: str, day: int) -> str:
        """Hash: the idempotency marks of a subject that were made on a day.

        Args:
            subject_id: The subject.
            day: Days since 1970-01-01, UTC.
        """
        return f"{self.tag}:marks:{subject_id}:{day}"


def partition_of(hexadecimal: str) -> Partition:
    """The partition that a subject id or a keyed hash (hex) falls into: its first byte."""
    return Partition(int(hexadecimal[:2], 16))


class SubjectKeys:
    """The keys that a subject's memory lies under; its key need not be known for that, and may be destroyed.

    Args:
        subject_id: The subject.
    """

    __slots__ = ("partition", "subject_id")

    def __init__(self, subject_id: str) -> None:
        self.subject_id = subject_id
        self.partition = partition_of(subject_id)

    @property
    def record(self) -> str:
        """Hash: the subject's record."""
        return self.partition.subject(self.subject_id)

    @property
    def recent(self) -> str:
        """List: the newest turns, sealed, oldest first."""
        return f"{self.partition.tag}:recent:{self.subject_id}"

    @property
    def fresh(self) -> str:
        """List: the turns that are stored but in no segment yet."""
        return self.partition.fresh(self.subject_id)

    @property
    def sessions(self) -> str:
        """Hash: a session's field -> number of turns, first and last time, sealed session id."""
        return f"{self.partition.tag}:sessions:{self.subject_id}"

    @property
    def active(self) -> str:
        """Sorted set: a session's field -> Unix milliseconds of its last turn."""
        return f"{self.partition.tag}:active:{self.subject_id}"

    @property
    def heat(self) -> str:
        """Hash: a record's id, 16 bytes -> its heat."""
        return f"{self.partition.tag}:heat:{self.subject_id}"

    @property
    def consents(self) -> str:
        """Hash: a decision's id, 16 bytes -> the sealed decision; `=` and a purpose's field -> the last one of it."""
        return f"{self.partition.tag}:consents:{self.subject_id}"

    def keys(self, today: int) -> list[str]:
        """Every key that only this subject's memory lies under: all but its record, which outlives an erasure.

        What the partition's own keys hold of it carries its epoch, and is dropped when that is found to be over.

        Args:
            today: Days since 1970-01-01, UTC.
        """
        own = [self.recent, self.fresh, self.sessions, self.active, self.heat, self.consents]
        return [*own, *self.all_marks(today), *self.all_receipts(today)]

    def all_marks(self, today: int) -> list[str]:
        """Every key that there may be marks under."""
        return [self.marks(day) for day in range(today + 1, today - 5, -1)]

    def all_receipts(self, today: int) -> list[str]:
        """Every key that there may be receipts under."""
        return [self.receipts(day) for day in range(today + 1, today - RECEIPT_DAYS - 2, -1)]

    def marks(self, day: int) -> str:
        """Hash: the idempotency marks made on a day.

        Args:
            day: Days since 1970-01-01, UTC.
        """
        return self.partition.marks(self.subject_id, day)

    def receipts(self, day: int) -> str:
        """Hash: a receipt's id, 16 bytes -> the sealed receipt of a chat of a day.

        Args:
            day: Days since 1970-01-01, UTC.
        """
        return f"{self.partition.tag}:receipts:{self.subject_id}:{day}"


def corpus_of(subject_id: str, kind: str = "") -> str:
    """What each vector record of one kind has as `s`: "" for episodes, else a kind of records."""
    return f"{subject_id}/{kind}" if kind else subject_id


class Scope(SubjectKeys):
    """The keys and filters of one subject.

    Args:
        subject: The subject.
        sealer: Its sealer, for what is found by equality.
    """

    __slots__ = ("_sealer", "subject")

    def __init__(self, subject: Subject, sealer: Sealer) -> None:
        super().__init__(subject.id)
        self.subject = subject
        self._sealer = sealer

    def mark(self, event_id: str) -> bytes:
        """The field of an event's idempotency mark: 16 bytes."""
        return bytes.fromhex(self._sealer.equality("event", event_id))

    def consent(self, purpose: str) -> bytes:
        """The field of a purpose: 16 bytes."""
        return bytes.fromhex(self._sealer.equality("consent", purpose))

    def gone(self, record_id: str) -> bytes:
        """The field of a removed record among the marks of dead letters: 16 bytes."""
        return bytes.fromhex(self._sealer.equality("gone", record_id))

    def session_field(self, session_id: str) -> bytes:
        """The field of a session in the list of sessions: 16 bytes; turns without a session have one, too."""
        return bytes.fromhex(self._sealer.equality("session", session_id))

    def session(self, session_id: str) -> str:
        """What stands for a session in filters: a keyed hash, "" for no session."""
        return self._sealer.equality("session", session_id) if session_id else ""

    def corpus(self, kind: str = "") -> str:
        """What each vector record of one kind has as `s`: "" for episodes, else a kind of records."""
        return corpus_of(self.subject.id, kind)

    @property
    def corpora(self) -> tuple[str, ...]:
        """The corpora of all kinds."""
        return tuple(self.corpus(kind) for kind in ("", *KINDS))

    def filter(self, *, session_id: str | None = None) -> Mapping[str, str]:
        """Payload field -> value that each vector record of this subject, or of one of its sessions, has."""
        match = {"s": self.subject.id}
        if session_id is not None:
            match["n"] = self.session(session_id)
        return match
