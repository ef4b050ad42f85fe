"""The gateway to providers, for tests that need it open."""

from __future__ import annotations

from typing import Any

from memoryos.settings import UpstreamSettings
from memoryos_server.tools.llm.gateway import Gateway
from memoryos_server.tools.llm.reloading import catalog_of


def gateway(base_url: str, **more: Any) -> Gateway:
    """One to a single provider; `more` are settings of the upstream."""
    return Gateway(catalog_of(UpstreamSettings(base_url=base_url, **{"api_key": "provider-key", **more})))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
