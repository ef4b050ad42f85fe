"""MemoryOS: memory for AI agents.

    from memoryos import Client

    with Client(user_id="ann") as memory:
        memory.add("I take my coffee black.")
        print(memory.retrieve("How does Ann drink her coffee?").episodes[0].content)

The names below load when they are first used, so that a process that only reads settings does not pay for gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memoryos.aio import AsyncChatStream, AsyncClient
    from memoryos.client import ChatStream, Client
    from memoryos.errors import MemoryOSError
    from memoryos.tls import Tls

__version__ = "0.1.0"

__all__ = ["AsyncChatStream", "AsyncClient", "ChatStream", "Client", "MemoryOSError", "Tls", "__version__"]

_HOMES = {
    "AsyncChatStream": "memoryos.aio",
    "AsyncClient": "memoryos.aio",
    "ChatStream": "memoryos.client",
    "Client": "memoryos.client",
    "MemoryOSError": "memoryos.errors",
    "Tls": "memoryos.tls",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
