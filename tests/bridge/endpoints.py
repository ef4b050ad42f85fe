"""Every documented endpoint: how it is called and what its answer looks like.

Shapes: a type (`str`, `int`, `float`, `bool`, `dict`) fits its values (`float` whole ones too); `TIME` is RFC 3339 with Z; `[shape]`
is an array of it; a dict is an object with at least these fields; `Maybe(shape)` may be null or absent; another value fits
itself. In paths and requests, `<name>` stands for a value that the run must provide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z")


@dataclass(frozen=True)
class Maybe:
    """A field that may be null or absent."""

    shape: Any


@dataclass(frozen=True)
class Text:
    """An answer that is no JSON: its content type, and what stands in it."""

    content_type: str
    holds: str


@dataclass(frozen=True)
class Endpoint:
    """One documented endpoint.

    Attributes:
        number: Its number in the contract.
        verb: The HTTP method.
        path: The path, with parameters in braces.
        answer: The shape of the documented answer.
        request: The JSON body, or None.
        query: Query parameters.
        status: The status of success.
        built: It is served by now.
    """

    number: int
    verb: str
    path: str
    answer: Any
    request: Any = None
    query: dict[str, str] | None = None
    status: int = 200
    built: bool = False


def misfits(value: Any, shape: Any, where: str = "answer") -> list[str]:
    """Where a value does not fit a shape; extra fields fit."""
    if isinstance(shape, Maybe):
        return [] if value is None else misfits(value, shape.shape, where)
    if isinstance(shape, re.Pattern):
        return [] if isinstance(value, str) and shape.fullmatch(value) else [f"{where}: {value!r} is no time"]
    if isinstance(shape, type):
        accepted = (int, float) if shape is float else (shape,)
        fits = isinstance(value, accepted) and (shape is bool or not isinstance(value, bool))
        return [] if fits else [f"{where}: {value!r} is no {shape.__name__}"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where}: {value!r} is no array"]
        return [miss for i, item in enumerate(value) for miss in misfits(item, shape[0], f"{where}[{i}]")]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} is no object"]
        found = []
        for key, inner in shape.items():
            if key in value or isinstance(inner, Maybe):
                found += misfits(value.get(key), inner, f"{where}.{key}")
            else:
                found.append(f"{where}.{key} is missing")
        return found
    return [] if value == shape and type(value) is type(shape) else [f"{where}: {value!r} is not {shape!r}"]


ALICE = {"user_id": "alice"}
LEAVER = {"user_id": "somebody-who-leaves"}
"""Whoever the run does not need any more."""

TRIPLE = {"subject": str, "predicate": str, "object": str}
SEGMENT = {
    "id": str,
    "summary": str,
    "tags": [str],
    "memory_type": str,
    "heat_score": float,
    "version": int,
}
MULTIMODAL = {
    "status": "ok",
    "count": int,
    "messages": [{"id": str, "role": str, "contents": [dict], "timestamp": TIME}],
}
STARTED = {"job_id": str, "status": "pending", "message": "Wiki generation started"}
MEMORY = {"id": str, "content": str, "memory_type": str, "importance": float, "created_at": TIME}
PROMOTION = {
    "id": str,
    "memory_id": str,
    "from_type": str,
    "to_type": str,
    "reason": str,
    "heat_score": float,
    "access_count": int,
    "promoted_at": TIME,
}

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(1, "GET", "/health", {"status": "ok"}, built=True),
    Endpoint(2, "GET", "/health/status", {"mode": "ready", "redis": "up", "qdrant": "up"}, built=True),
    Endpoint(3, "GET", "/health/live", {"status": "ok", "timestamp": TIME}, built=True),
    Endpoint(4, "GET", "/health/ready", {"status": "ready", "timestamp": TIME}, built=True),
    Endpoint(5, "GET", "/metrics", Text("text/plain", "memoryos_bridge_requests_total"), built=True),
    Endpoint(
        6,
        "POST",
        "/v1/chat/completions",
        {
            "id": str,
            "object": "chat.completion",
            "created": int,
            "model": str,
            "choices": [
                {"index": int, "message": {"role": "assistant", "content": str}, "finish_reason": str},
            ],
            "usage": {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int},
        },
        {"model": "memoryos/recall", "messages": [{"role": "user", "content": "Where do I live?"}]},
        built=True,
    ),
    Endpoint(
        7,
        "POST",
        "/v1/memory/add",
        {"status": "ok", "event_id": str, "memory_id": str, "duplicate": bool},
        ALICE | {"role": "user", "content": "I moved to Lisbon in May", "event_id": "event-1"},
        built=True,
    ),
    Endpoint(
        8,
        "POST",
        "/v1/memory/retrieve",
        {
            "episodes": [
                {
                    "id": str,
                    "event_id": str,
                    "session_id": str,
                    "role": str,
                    "name": str,
                    "content": str,
                    "timestamp": TIME,
                    "score": float,
                }
            ],
            "short_term": [{"role": str, "content": str, "timestamp": TIME}],
            "mid_term": [{"id": str, "summary": str, "score": float}],
            "long_term": {"profile": str, "knowledge": [str]},
        },
        ALICE | {"query": "Where does she live?"},
        built=True,
    ),
    Endpoint(
        9,
        "GET",
        "/v1/memory/{memory_id}/history",
        [{"version": int, "content": str, "changed_at": TIME}],
        built=True,
    ),
    Endpoint(
        10,
        "POST",
        "/v1/graph/extract",
        {"entities_added": int, "triples": [TRIPLE]},
        {"text": "Maria works at Siemens as a physicist."},
    ),
    Endpoint(11, "POST", "/v1/graph/extract/llm-prompt", {"prompt": str}, {"text": "Maria works at Siemens."}),
    Endpoint(
        12,
        "POST",
        "/v1/graph/extract/llm-parse",
        {"entities_added": int, "triples": [TRIPLE], "total_entities": int, "total_relations": int},
        {"response": "Entity: Maria (Person)\nRelation: Maria works_at Siemens"},
    ),
    Endpoint(
        13,
        "POST",
        "/v1/graph/query",
        {"entities": [{"id": str, "label": str, "entity_type": str}], "triples": [TRIPLE]},
        {"query": "maria"},
    ),
    Endpoint(
        14,
        "POST",
        "/v1/graph/path",
        {"paths": [[str]], "count": int},
        {"from": "Maria", "to": "Siemens", "max_depth": 2},
    ),
    Endpoint(15, "GET", "/v1/graph/triples", {"triples": [TRIPLE], "count": int}),
    Endpoint(16, "GET", "/v1/graph/stats", {"entity_count": int, "relation_count": int}),
    Endpoint(
        17,
        "POST",
        "/v1/memory/manage/tags",
        {"status": "ok", "message": "Tags added successfully"},
        ALICE | {"segment_id": "<segment_id>", "tags": ["home"]},
        built=True,
    ),
    Endpoint(
        18,
        "POST",
        "/v1/memory/manage/search/tags",
        {"status": "ok", "count": int, "segments": [SEGMENT]},
        ALICE | {"tags": ["home"], "limit": 5},
        built=True,
    ),
    Endpoint(
        19,
        "POST",
        "/v1/memory/manage/export",
        {
            "status": "ok",
            "format": "json",
            "data": {"user_id": str, "exported_at": TIME, "segment_count": int, "segments": [SEGMENT]},
        },
        ALICE | {"format": "json"},
        built=True,
    ),
    Endpoint(
        20,
        "POST",
        "/v1/memory/manage/import",
        {"status": "ok", "imported": 1},
        ALICE | {"segments": [{"summary": "She sails on Sundays", "tags": ["sport"], "memory_type": "qa"}]},
        built=True,
    ),
    Endpoint(
        21,
        "POST",
        "/v1/memory/manage/versions",
        {
            "status": "ok",
            "segment_id": str,
            "version_count": int,
            "history": [
                {"id": str, "version": int, "summary": str, "tags": [str], "created_at": TIME, "updated_at": TIME}
            ],
        },
        ALICE | {"segment_id": "<segment_id>"},
        built=True,
    ),
    Endpoint(
        22,
        "POST",
        "/v1/multimodal/store",
        {"status": "ok"},
        ALICE
        | {
            "role": "user",
            "contents": [{"type": "text", "text": "My boat"}, {"type": "image", "embedding": [0.5, 0.25]}],
        },
    ),
    Endpoint(23, "POST", "/v1/multimodal/search", MULTIMODAL, ALICE | {"query": "boat", "limit": 3}),
    Endpoint(
        24,
        "POST",
        "/v1/multimodal/search/embedding",
        MULTIMODAL,
        ALICE | {"embedding": [0.5, 0.25], "limit": 3, "modality": "image"},
    ),
    Endpoint(25, "POST", "/v1/multimodal/recent", MULTIMODAL, ALICE | {"limit": 3}),
    Endpoint(
        26,
        "POST",
        "/v1/security/audit/logs",
        {
            "status": "ok",
            "count": int,
            "events": [
                {
                    "id": str,
                    "timestamp": TIME,
                    "event_type": str,
                    "user_id": str,
                    "resource": str,
                    "action": str,
                    "outcome": str,
                    "details": Maybe(str),
                    "ip_address": Maybe(str),
                }
            ],
        },
        ALICE | {"limit": 5},
        built=True,
    ),
    Endpoint(27, "GET", "/v1/security/audit/stats", {"status": "ok", "total_events": int}, built=True),
    Endpoint(
        28,
        "POST",
        "/v1/security/gdpr/export",
        {
            "status": "ok",
            "export": {
                "user_id": str,
                "tenant_id": str,
                "exported_at": TIME,
                "episodes": [dict],
                "segments": [dict],
                "knowledge": [dict],
                "memories": [dict],
                "multimodal": [dict],
                "faq": [dict],
                "consents": [dict],
                "audit": [dict],
                "keys": [dict],
                "connectors": [dict],
                "jobs": [dict],
            },
        },
        ALICE,
        built=True,
    ),
    Endpoint(29, "POST", "/v1/security/gdpr/delete", {"status": "ok", "message": str}, LEAVER, built=True),
    Endpoint(
        30,
        "POST",
        "/v1/security/gdpr/consent",
        {"status": "ok", "message": "Consent recorded"},
        ALICE | {"purpose": "data_processing", "granted": True},
        built=True,
    ),
    Endpoint(
        31,
        "POST",
        "/v1/security/gdpr/consent/check",
        {"status": "ok", "user_id": "alice", "purpose": "data_processing", "has_consent": bool},
        ALICE | {"purpose": "data_processing"},
        built=True,
    ),
    Endpoint(
        32,
        "POST",
        "/v1/wiki/generate",
        STARTED,
        {"repo_path": "<repo_path>", "config": {"output_dir": "./wiki", "languages": ["python"]}},
        status=202,
    ),
    Endpoint(
        33,
        "POST",
        "/v1/wiki/parse",
        {"files": int, "symbols": int, "references": int, "endpoints": int, "diagnostics": int, "manifests": int},
        {"repo_path": "<repo_path>"},
    ),
    Endpoint(
        34,
        "GET",
        "/v1/wiki/status",
        {
            "jobs": [
                {
                    "id": str,
                    "repo_path": str,
                    "status": str,
                    "pages_generated": int,
                    "error": Maybe(str),
                    "started_at": Maybe(TIME),
                    "completed_at": Maybe(TIME),
                }
            ]
        },
    ),
    Endpoint(
        35,
        "GET",
        "/v1/wiki/jobs/{job_id}",
        {"id": str, "status": str, "pages_generated": int, "error": Maybe(str)},
    ),
    Endpoint(
        36,
        "GET",
        "/v1/wiki/connectors",
        {
            "connectors": [
                {
                    "type": str,
                    "name": str,
                    "description": str,
                    "auth_required": bool,
                    "fields": [{"name": str, "type": str, "required": bool, "description": str}],
                }
            ]
        },
    ),
    Endpoint(
        37,
        "POST",
        "/v1/wiki/connectors",
        {"id": str, "message": "Connector saved successfully"},
        {"name": "Sources", "connector_type": "local", "config": {"path": "<repo_path>"}},
    ),
    Endpoint(
        38,
        "GET",
        "/v1/wiki/connectors/saved",
        [{"id": str, "name": str, "connector_type": str, "config": dict, "created_at": TIME}],
    ),
    Endpoint(
        39,
        "POST",
        "/v1/wiki/connectors/test",
        {"success": True, "connector_id": str, "metadata": {"files_count": int}},
        {"type": "local", "config": {"path": "<repo_path>"}},
    ),
    Endpoint(
        40,
        "POST",
        "/v1/wiki/connectors/browse",
        {
            "success": True,
            "path": str,
            "entries": [{"name": str, "path": str, "type": str, "size": Maybe(int)}],
            "total": int,
        },
        {"connector_id": "<connector_id>", "path": "/"},
    ),
    Endpoint(41, "POST", "/v1/wiki/connectors/generate", STARTED, {"connector_id": "<connector_id>"}, status=202),
    Endpoint(
        42,
        "POST",
        "/v1/admin/keys",
        {"api_key": str, "message": "API Key created successfully"},
        {"api_key": "a-chosen-key-of-alice", "permissions": ["chat", "memory"], "description": "a key"} | ALICE,
        built=True,
    ),
    Endpoint(43, "DELETE", "/v1/admin/keys/{key}", {"message": "API Key deleted successfully"}, built=True),
    Endpoint(
        44,
        "GET",
        "/v1/admin/faq/candidates",
        {
            "total": int,
            "candidates": [
                {
                    "id": str,
                    "user_id": str,
                    "summary": str,
                    "access_count": int,
                    "heat_score": float,
                    "memory_type": "faq_candidate",
                    "created_at": TIME,
                    "last_accessed": TIME,
                }
            ],
        },
    ),
    Endpoint(
        45,
        "POST",
        "/v1/admin/faq/promote",
        {"success": True, "message": str, "record": PROMOTION},
        {"memory_id": "<memory_id>", "reason": "often asked"},
    ),
    Endpoint(
        46,
        "POST",
        "/v1/admin/faq/classify",
        {"prompt": str},
        {"question": "When do you open?", "answer": "At nine."},
    ),
    Endpoint(47, "DELETE", "/v1/admin/faq/{id}", {"success": True, "message": str}),
    Endpoint(48, "GET", "/v1/admin/faq/history", {"history": [PROMOTION], "total": int}),
    Endpoint(
        49,
        "GET",
        "/v1/admin/faq/stats",
        {"candidates": int, "faqs": int, "promotions": int, "demotions": int, "direct_hits": int},
    ),
    Endpoint(
        50,
        "GET",
        "/v1/admin/defense/stats",
        {
            "total_requests": int,
            "blocked_requests": int,
            "total_bans": int,
            "temp_bans": int,
            "permanent_bans": int,
            "whitelist_size": int,
        },
        built=True,
    ),
    Endpoint(
        51,
        "POST",
        "/v1/admin/defense/whitelist",
        {"message": "IP 192.0.2.7 added to whitelist"},
        {"ip": "192.0.2.7", "reason": "ours"},
        built=True,
    ),
    Endpoint(52, "DELETE", "/v1/admin/defense/unban/{ip}", {"message": "IP 192.0.2.7 unbanned"}, built=True),
    Endpoint(
        53,
        "POST",
        "/v1/memories",
        {"success": True, "data": MEMORY},
        {"content": "Answers come in French", "memory_type": "rule", "importance": 0.8},
        built=True,
    ),
    Endpoint(
        54,
        "GET",
        "/v1/memories",
        {"success": True, "data": {"memories": [MEMORY], "total": int, "page": int, "page_size": int}},
        query={"memory_type": "rule", "page": "1", "page_size": "20"},
        built=True,
    ),
    Endpoint(55, "GET", "/v1/memories/{id}", {"success": True, "data": MEMORY}, built=True),
    Endpoint(56, "PATCH", "/v1/memories/{id}", {"success": True, "data": MEMORY}, {"importance": 0.6}, built=True),
    Endpoint(57, "DELETE", "/v1/memories/{id}", {"success": True, "data": {"id": str, "deleted": True}}, built=True),
    Endpoint(
        58,
        "POST",
        "/v1/memories/search",
        {
            "success": True,
            "data": {"results": [{"id": str, "content": str, "memory_type": str, "importance": float, "score": float}]},
        },
        {"query": "language", "top_k": 3, "min_similarity": 0.2, "memory_type": "rule"},
        built=True,
    ),
    Endpoint(
        59,
        "POST",
        "/v1/memories/extract",
        {"success": True, "data": {"memories": [MEMORY], "skipped": int}},
        {"messages": [{"role": "user", "content": "We write Rust and deploy on Fridays"}], "deduplicate": True},
        built=True,
    ),
    Endpoint(
        60,
        "DELETE",
        "/v1/memories",
        {"success": True, "data": {"deleted": int}},
        {"memory_type": "context"},
        built=True,
    ),
)
"""The documented endpoints, in the order of the contract."""

ADDED = frozenset(
    {
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/docs/{asset}"),
        ("GET", "/v1/models"),
        ("DELETE", "/v1/memory/manage/tags"),
        ("GET", "/v1/memory/sessions"),
        ("GET", "/v1/memory/sessions/{session_id}"),
        ("DELETE", "/v1/memory/sessions/{session_id}"),
        ("GET", "/v1/memory/events/{event_id}"),
        ("DELETE", "/v1/memory/{memory_id}"),
        ("GET", "/v1/admin/queue"),
        ("POST", "/v1/admin/queue/requeue"),
        ("POST", "/v1/admin/queue/{id}/requeue"),
        ("DELETE", "/v1/admin/queue/{id}"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/admin/keys"),
        ("POST", "/v1/admin/keys/{key}/rotate"),
        ("GET", "/v1/admin/users"),
        ("GET", "/v1/chat/receipts/{id}"),
        ("GET", "/v1/admin/defense/bans"),
        ("GET", "/v1/admin/defense/whitelist"),
        ("DELETE", "/v1/admin/defense/whitelist/{ip}"),
        ("DELETE", "/v1/admin/defense/whitelist/{ip}/{prefix_length}"),
        ("GET", "/v1/security/gdpr/certificates/{id}"),
    }
)
"""Routes that are served and not documented there."""
