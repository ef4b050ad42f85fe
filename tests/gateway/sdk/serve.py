"""Does what lines of JSON on stdin say, with the functions of an SDK's script, and tells on stdout what came of each.

`{"do": "chat", ...}` calls `chat(...)` to its end; `{"begin": "chat", ...}` only begins it, and `{"do": "cancel"}` cancels that.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

Functions = dict[str, Callable[..., Awaitable[dict[str, Any]]]]


async def outcome(call: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """What a call returns, or which error it raises."""
    try:
        return await call
    except (Exception, asyncio.CancelledError) as error:
        kind = type(error)
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        return {
            "error": f"{kind.__module__.partition('.')[0]}.{kind.__name__}",
            "kinds": [k.__name__ for k in kind.__mro__],
            "status": getattr(error, "status_code", None),
            "code": getattr(error, "code", None),
            "retry_after": headers.get("retry-after"),
            "message": str(error),
        }


async def _serve(functions: Functions) -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # some SDKs print
    begun: asyncio.Task[dict[str, Any]] | None = None
    told: dict[str, Any] = {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        do, begin = order.pop("do", None), order.pop("begin", None)
        if begin:
            begun = asyncio.create_task(outcome(functions[begin](**order)))
            told = {}
        elif do == "cancel":
            assert begun is not None
            begun.cancel()
            told = await begun
        else:
            told = await outcome(functions[do](**order))
        print(json.dumps(told), file=out, flush=True)


def serve(functions: Functions) -> None:
    """Serves until stdin ends."""
    asyncio.run(_serve(functions))
