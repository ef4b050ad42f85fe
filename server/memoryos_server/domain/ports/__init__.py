"""How the domain reaches the world: a handful of small protocols.

Names say behaviour, not technology. Adapters seal what they store; nothing here knows of it. Every method may raise
`BackendDown`. Cancelling a call that has been acknowledged undoes nothing.
"""

from memoryos_server.domain.ports.candidates import Candidate, Candidates
from memoryos_server.domain.ports.ledger import (
    Acceptance,
    DeadLetter,
    Entry,
    EventState,
    HeatStore,
    Lease,
    Queue,
    Settlement,
    Turns,
)
from memoryos_server.domain.ports.memories import (
    KINDS,
    Change,
    HeatState,
    People,
    Record,
    Session,
    Subject,
    Subjects,
    Turn,
)
from memoryos_server.domain.ports.outside import (
    ApiKey,
    ApiKeys,
    Asked,
    AuditLog,
    Embedder,
    KeyStore,
    Llm,
    ProviderAnswer,
    Recorder,
    Served,
)
from memoryos_server.domain.ports.search import (
    IndexedRecord,
    IndexedTurn,
    RecordFilter,
    RecordHit,
    RecordQuery,
    SearchQuery,
    Vectors,
)

__all__ = [
    "KINDS",
    "Acceptance",
    "ApiKey",
    "ApiKeys",
    "Asked",
    "AuditLog",
    "Candidate",
    "Candidates",
    "Change",
    "DeadLetter",
    "Embedder",
    "Entry",
    "EventState",
    "HeatState",
    "HeatStore",
    "IndexedRecord",
    "IndexedTurn",
    "KeyStore",
    "Lease",
    "Llm",
    "People",
    "ProviderAnswer",
    "Queue",
    "Record",
    "RecordFilter",
    "RecordHit",
    "RecordQuery",
    "Recorder",
    "SearchQuery",
    "Served",
    "Session",
    "Settlement",
    "Subject",
    "Subjects",
    "Turn",
    "Turns",
    "Vectors",
]
