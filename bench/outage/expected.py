"""What every call is to answer in every state of the stores: the degraded table of the contract, as data.

An answer is written as one line: its status and error code, `degraded` if it says so, and what it brought.
"""

from __future__ import annotations

STATES = ("redis down", "qdrant down", "both down", "back up")
MODES = ("refused", "hanging")
CACHES = ("warm", "cold", "cold key")
"""Whether the server knows the user and the key from before; the user is new to it; the key is, too."""

CALLS = (
    "chat JSON",
    "chat SSE",
    "add",
    "retrieve",
    "retrieve gRPC",
    "memories read",
    "memories create",
    "memories change",
    "manage read",
    "manage change",
    "health",
)

DOWN = "503 store_unavailable degraded"
_KEPT = "200 degraded"

_ALL = {
    "chat JSON": "200 injected=rule+recent remembered=true",
    "chat SSE": "200 injected=rule+recent remembered=pending",
    "add": "200",
    "retrieve": "200 short_term+episodes+long_term",
    "retrieve gRPC": "200 short_term+episodes+long_term",
    "memories read": "200 found",
    "memories create": "200",
    "memories change": "200",
    "manage read": "200 found",
    "manage change": "200",
    "health": "200 ready redis=up qdrant=up ready=200",
}

# Short-term memory and the provider; what is written is accepted and queued.
_WITHOUT_QDRANT = {
    "chat JSON": "200 degraded injected=recent remembered=true",
    "chat SSE": "200 degraded injected=recent remembered=pending",
    "add": _KEPT,
    "retrieve": "200 degraded short_term",
    "retrieve gRPC": "200 degraded short_term",
    "memories read": DOWN,
    "memories create": _KEPT,
    "memories change": DOWN,
    "manage read": DOWN,
    "manage change": DOWN,
    "health": "200 degraded degraded_ready redis=up qdrant=down ready=200",
}

# Mid-term and long-term memory and the provider, for users and keys that are known; nothing can be kept.
_WITHOUT_REDIS = {
    "chat JSON": "200 degraded injected=rule+episode remembered=false",
    "chat SSE": "200 degraded injected=rule+episode remembered=false",
    "add": DOWN,
    "retrieve": "200 degraded episodes+long_term",
    "retrieve gRPC": "200 degraded episodes+long_term",
    "memories read": "200 degraded found",
    "memories create": DOWN,
    "memories change": DOWN,
    "manage read": "200 degraded found",
    "manage change": DOWN,
    "health": "200 degraded degraded_ready redis=down qdrant=up ready=200",
}

_PASS_THROUGH = {
    **dict.fromkeys(CALLS, DOWN),
    "chat JSON": "200 degraded injected=nothing remembered=false",
    "chat SSE": "200 degraded injected=nothing remembered=false",
}

_NOBODY = dict.fromkeys(CALLS, DOWN)
"""Who calls is not known, and cannot be asked."""

_REDIS_HEALTH = {"health": _WITHOUT_REDIS["health"]}
_BOTH_HEALTH = {"health": "503 degraded not_ready redis=down qdrant=down ready=503"}

TABLE: dict[tuple[str, str], dict[str, str]] = {
    ("redis down", "warm"): _WITHOUT_REDIS,
    ("redis down", "cold"): {**_PASS_THROUGH, **_REDIS_HEALTH},
    ("redis down", "cold key"): {**_NOBODY, **_REDIS_HEALTH},
    ("both down", "warm"): {**_PASS_THROUGH, **_BOTH_HEALTH},
    ("both down", "cold"): {**_PASS_THROUGH, **_BOTH_HEALTH},
    ("both down", "cold key"): {**_NOBODY, **_BOTH_HEALTH},
    **{("qdrant down", cache): _WITHOUT_QDRANT for cache in CACHES},
    **{("back up", cache): _ALL for cache in CACHES},
}
"""State of the stores and of the caches -> call -> answer. The way in which a store is away makes no difference."""
