"""What the server adds to `memoryos doctor`: looks at the live stores and the file of providers that are set."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from memoryos.settings import Settings, SettingsError
from memoryos_server.stores.redis_doctor import FAIL, OK, Found, examine
from memoryos_server.stores.redis_opening import live_redis
from memoryos_server.tools.llm.reloading import catalog_of
from memoryos_server.tools.llm.table import TableError


def stores(settings: Settings) -> Iterator[Found]:
    """Name, state, text and hint of each finding; nothing for embedded stores."""
    try:
        endpoint = live_redis(settings)
    except SettingsError as error:
        yield "redis", FAIL, str(error), "correct it; docs/live-stores.md shows each form"
        return
    if endpoint is not None:
        security = settings.security
        yield from asyncio.run(examine(endpoint, security.master_key, security.previous_master_key))


def providers(settings: Settings) -> Iterator[Found]:
    """As `stores`, of the file of providers; nothing where there is none."""
    if not settings.upstream.providers_file:
        return
    try:
        catalog = catalog_of(settings.upstream)
    except TableError as error:
        yield "providers", FAIL, str(error), "correct it; docs/providers.md shows its form"
    else:
        named = ", ".join(catalog.providers) or "none"
        yield "providers", OK, f"providers: {named}; models by name: {len(catalog.routes)}", ""
