"""What the server adds to `memoryos doctor`: looks at the live stores that are set."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from memoryos.settings import Settings, SettingsError
from memoryos_server.stores.redis_doctor import FAIL, Found, examine
from memoryos_server.stores.redis_opening import live_redis


def stores(settings: Settings) -> Iterator[Found]:
    """Name, state, text and hint of each finding; nothing for embedded stores."""
    try:
        endpoint = live_redis(settings)
    except SettingsError as error:
        yield "redis", FAIL, str(error), "correct it; docs/live-stores.md shows each form"
        return
    if endpoint is not None:
        yield from asyncio.run(examine(endpoint, settings.security.master_key))
