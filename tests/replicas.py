"""Two servers and two bridges on one Valkey and one Qdrant, and a client as a balancer leaves it to: any bridge will do."""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.live_stores import LiveStores, cluster, standalone
from tests.system import System, on_cluster

ENDS = {"stored", "merged", "skipped"}
"""How work on an event may end."""


class Replicas:
    """Two servers and two bridges; every bridge knows both servers.

    Attributes:
        stores: What they share; by default one Valkey, or a cluster if tests are to run on one, and one Qdrant.
        systems: Each one server and one bridge.
    """

    def __init__(self, home: Path, env: Mapping[str, str] | None = None, *, stores: LiveStores | None = None) -> None:
        self.stores = stores or (cluster(home) if on_cluster() else standalone(home / "stores"))
        self.systems = [System(home / f"replica-{n}", self.stores.start() | (env or {})) for n in range(2)]
        servers = ",".join(system.grpc for system in self.systems)
        for system in self.systems:
            system.env["MEMORYOS_BRIDGE__SERVER"] = servers
        self._turns = itertools.count()

    def __enter__(self) -> Replicas:
        try:
            for system in self.systems:
                system.start(wait=False)
            for system in self.systems:
                system.wait_port(system.grpc)
                system.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for system in self.systems:
            system.kill(group=True)
        self.stores.remove()

    def session(self, user_id: str) -> list[str]:
        """The event ids of all turns in a user's session `s`, in their order, read page by page."""
        found: list[str] = []
        token = ""
        while True:
            path = f"/v1/memory/sessions/s?user_id={user_id}&page_size=100&page_token={token}"
            status, page = self.call("GET", path)
            assert status == 200, page
            found += [turn["event_id"] for turn in page.get("turns", ())]
            token = page.get("next_page_token", "")
            if not token:
                return found

    def check_ended(self, user_id: str, event_ids: Sequence[str]) -> None:
        """Sees that all work on these events has ended well."""
        for name in event_ids:
            status, answer = self.call("GET", f"/v1/memory/events/{name}?user_id={user_id}")
            assert (status, answer.get("state") in ENDS) == (200, True), answer

    def call(
        self, verb: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, *, timeout: float = 30
    ) -> tuple[int, Any]:
        """Status and JSON of one request to any bridge; another one is asked if, and only if, one refuses to connect."""
        first = next(self._turns)
        for turn in range(200):
            system = self.systems[(first + turn) % len(self.systems)]
            try:
                return request(system, verb, path, body, headers, timeout=timeout)
            except ConnectionRefusedError:
                time.sleep(0.05 if turn % len(self.systems) else 0)
        raise ConnectionRefusedError("no bridge takes connections")


def request(
    system: System,
    verb: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float = 30,
) -> tuple[int, Any]:
    """Status and JSON of one request to one bridge, on a connection of its own; errors of the connection as they are."""
    connection = http.client.HTTPConnection(*system.http.split(":"), timeout=timeout)  # type: ignore[arg-type]  # a port as text will do
    try:
        raw = None if body is None else json.dumps(body)
        connection.request(
            verb, path, raw, {"Content-Type": "application/json", "Connection": "close", **(headers or {})}
        )
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    return answer.status, json.loads(text) if text else None


def stop_server(system: System) -> None:
    """SIGTERM, and waits until the server has ended as it should."""
    assert system.server is not None
    system.server.send_signal(signal.SIGTERM)
    assert system.server.wait(60) == 0, system.logs()


def stop_bridge(system: System) -> None:
    """SIGTERM, and waits until the bridge has ended as it should."""
    assert system.bridge is not None
    system.bridge.send_signal(signal.SIGTERM)
    assert system.bridge.wait(60) == 0, system.logs()
