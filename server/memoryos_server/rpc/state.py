"""What can be served at present, as values that the gRPC side reads.

`memoryos_server.health` finds it out; it stands above this package, so that the words for it stand here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Phase(Enum):
    """Where the process is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Mode(Enum):
    """What can be served, in the words of the health endpoints."""

    READY = "ready"
    DEGRADED_READY = "degraded_ready"
    NOT_READY = "not_ready"


@dataclass(frozen=True, slots=True)
class ServingState:
    """What can be served.

    Attributes:
        phase: Where the process is in its life.
        redis: Whether the Redis-side store answers.
        qdrant: Whether the vector store answers.
        ready_when_noop: Whether chat that only passes through counts as readiness.
    """

    phase: Phase
    redis: bool
    qdrant: bool
    ready_when_noop: bool = False

    @property
    def mode(self) -> Mode:
        """`ready` is both stores up; `not_ready` is both down, starting or draining."""
        if self.phase is not Phase.SERVING or not (self.redis or self.qdrant):
            return Mode.NOT_READY
        return Mode.READY if self.redis and self.qdrant else Mode.DEGRADED_READY

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.mode is not Mode.NOT_READY or (self.phase is Phase.SERVING and self.ready_when_noop)

    @property
    def degraded(self) -> bool:
        """Whether answers are marked as degraded: a store is down."""
        return not (self.redis and self.qdrant)


class Serving(Protocol):
    """Knows what can be served."""

    @property
    def state(self) -> ServingState:
        """The newest state; costs nothing to read."""

    async def drain(self) -> None:
        """Says NOT_SERVING everywhere from now on."""
