"""Who may call what, and whose data it touches: one line for each RPC, written by hand from the contract.

The protos say the same, and the tests hold the two against each other: a slip of the pen in one of them is found. From these lines
every combination of RPC and caller is called (`tests/journeys/test_authorisation.py`).

`whose` is `nobody`, `user` (the key's; with `act_as` or `admin` another one of the tenant, who is named), `self` (the same, but
with `admin` only), `key` (its own; with `admin` all of the tenant), `tenant` (all of it) or `store` (every tenant's: only keys
of all tenants).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ID = "01a1fd9b-8104-7b64-9ac3-4e0e0fb6e7ea"
"""An id that nobody has."""


@dataclass(frozen=True)
class Line:
    """One RPC.

    Attributes:
        rpc: Its name.
        permission: What a key must hold; `public` needs no key.
        whose: Whose data it touches.
        request: A good request, in the names and values of REST.
        http: What stands in place of `request` over HTTP, where that is another thing.
        path: The route, where the proto names none.
        ends: How the request may end for who may send it.
        names: Whether a key without `admin` must name its own user.
        once: It ends the key that sends it.
    """

    rpc: str
    permission: str
    whose: str
    request: Mapping[str, Any] = field(default_factory=dict)
    http: Mapping[str, Any] | None = None
    path: str = ""
    ends: tuple[str, ...] = ("OK", "NOT_FOUND")
    names: bool = False
    once: bool = False


_SAY = {"model": "memoryos/recall", "messages": [{"role": "user", "content": "Good morning!"}]}
_ASK = {"model": "memoryos/recall", "input": "Good morning!"}
_TURN = {"role": "user", "content": "I take my coffee black."}

LINES: tuple[Line, ...] = (
    # 2. Public
    Line("CheckHealth", "public", "nobody"),
    Line("GetHealthStatus", "public", "nobody"),
    Line("CheckLiveness", "public", "nobody"),
    Line("CheckReadiness", "public", "nobody"),
    Line("GetMetrics", "public", "nobody"),
    Line("GetServerInfo", "public", "nobody"),
    # 3. Chat
    Line("CreateChatCompletion", "chat", "user", {"chat": {"body_json": json.dumps(_SAY)}}, _SAY),
    Line(
        "StreamChatCompletion",
        "chat",
        "user",
        {"chat": {"body_json": json.dumps(_SAY)}},
        _SAY | {"stream": True},
        "/v1/chat/completions",
    ),
    Line("CreateResponse", "chat", "user", {"chat": {"body_json": json.dumps(_ASK)}}, _ASK),
    Line(
        "StreamResponse",
        "chat",
        "user",
        {"chat": {"body_json": json.dumps(_ASK)}},
        _ASK | {"stream": True},
        "/v1/responses",
    ),
    Line("GetChatReceipt", "chat", "user", {"id": ID}),
    Line("ListModels", "chat", "nobody"),
    # The tests run without a model.
    Line(
        "CreateEmbeddings",
        "chat",
        "nobody",
        {"model": "minilm", "input": "Good morning!"},
        ends=("INVALID_ARGUMENT",),
    ),
    Line("ListUsage", "chat", "key"),
    # 4. Memory
    Line("AddMemory", "memory.write", "user", _TURN),
    Line("RetrieveMemory", "memory.read", "user", {"query": "coffee"}),
    Line("GetMemoryHistory", "memory.read", "user", {"memory_id": ID}),
    Line("ListSessions", "memory.read", "user"),
    Line("GetSession", "memory.read", "user", {"session_id": "monday"}),
    Line("DeleteSession", "memory.write", "user", {"session_id": "monday"}),
    Line("GetEvent", "memory.read", "user", {"event_id": "e-1"}),
    Line("DeleteMemory", "memory.write", "user", {"memory_id": ID}),
    # 6. Management
    Line("AddTags", "memory.write", "user", {"segment_id": ID, "tags": ["work"]}),
    Line("RemoveTags", "memory.write", "user", {"segment_id": ID, "tags": ["work"]}),
    Line("SearchTags", "memory.read", "user", {"tags": ["work"]}),
    Line("ExportSegments", "memory.read", "user"),
    Line("ImportSegments", "memory.write", "user", {"segments": [{"summary": "Ann likes hiking"}]}),
    Line("ListVersions", "memory.read", "user", {"segment_id": ID}),
    # 8. Security
    Line("ListAuditLogs", "security", "self", names=True),
    Line("GetAuditStats", "security", "tenant"),
    Line("RecordConsent", "security", "self", {"purpose": "analytics", "granted": True}),
    Line("CheckConsent", "security", "self", {"purpose": "analytics"}),
    Line("ExportUserData", "security", "self"),
    Line("DeleteUserData", "security", "self", once=True),
    Line("GetErasureCertificate", "security", "self", {"id": "0" * 32}),
    # 11. Administration
    Line("CreateApiKey", "admin", "tenant", {"user_id": "x", "permissions": ["chat"]}),
    Line("ListApiKeys", "admin", "tenant"),
    Line("DeleteApiKey", "admin", "tenant", {"key": "key_0000000000000000"}),
    Line("RotateApiKey", "admin", "tenant", {"key": "key_0000000000000000", "overlap_seconds": 60}),
    Line("ListUsers", "admin", "tenant"),
    Line("GetQueue", "admin", "tenant"),
    Line("RequeueDeadLetters", "admin", "tenant"),
    Line("RequeueDeadLetter", "admin", "tenant", {"id": "0-0-0"}),
    Line("DiscardDeadLetter", "admin", "tenant", {"id": "0-0-0"}),
    Line("GetDefenseStats", "admin", "store"),
    Line("ListBans", "admin", "store"),
    Line("UnbanIp", "admin", "store", {"ip": "203.0.113.9"}),
    Line("ListWhitelist", "admin", "store"),
    Line("WhitelistIp", "admin", "store", {"ip": "192.168.1.100", "reason": "Internal server"}),
    Line("RemoveWhitelistIp", "admin", "store", {"ip": "192.168.1.100"}),
    Line("ReportUnknownRoute", "public", "nobody"),
    # 12. Typed memories
    Line("CreateTypedMemory", "memory.write", "user", {"content": "Tea at four", "memory_type": "rule"}),
    Line("ListTypedMemories", "memory.read", "user"),
    Line("GetTypedMemory", "memory.read", "user", {"id": ID}),
    Line("UpdateTypedMemory", "memory.write", "user", {"id": ID, "importance": 0.7}),
    Line("DeleteTypedMemory", "memory.write", "user", {"id": ID}),
    Line("SearchTypedMemories", "memory.read", "user", {"query": "tea"}),
    Line("ExtractTypedMemories", "memory.write", "user", {"text": "I use Python."}),
    Line("DeleteTypedMemories", "memory.write", "user", {"memory_type": "context"}),
)
"""Every RPC, in the order of the contract."""
