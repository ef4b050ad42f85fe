"""What an embedder is, so that vectors of two models are never compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from memoryos_server.domain.ports import Embedder


@dataclass(frozen=True, slots=True)
class Identity:
    """What vectors can be compared with: stored beside them, so that two models are never mixed.

    Attributes:
        name: The model and the way it is run; "" without one.
        sha256: Of the published weights, hex; "" without a model.
        dimension: Of its vectors; 0 without a model.
    """

    name: str
    sha256: str
    dimension: int

    @property
    def fingerprint(self) -> str:
        """16 hex digits that differ between embedders whose vectors do not compare; "" without one."""
        if not self.name:
            return ""
        return hashlib.sha256(f"{self.name}\n{self.sha256}\n{self.dimension}".encode()).hexdigest()[:16]


class IdentifiedEmbedder(Embedder, Protocol):
    """An embedder that can say what it is."""

    @property
    def identity(self) -> Identity:
        """What its vectors can be compared with."""

    def status(self) -> str:
        """One line for people: what embeds, or why nothing does and what to do about it."""


class NoEmbedder:
    """Embeds nothing; recall goes by words alone."""

    def __init__(self, reason: str) -> None:
        """Keeps why."""
        self._reason = reason

    @property
    def names(self) -> Mapping[str, int]:
        """Empty."""
        return {}

    @property
    def identity(self) -> Identity:
        """The identity of no model."""
        return Identity("", "", 0)

    def status(self) -> str:
        """Why there is no model, in one line."""
        return f"no semantic model: {self._reason}; recall goes by words alone"

    async def embed(self, texts: Sequence[str]) -> list[Mapping[str, Sequence[float]]]:
        """No vector for any text."""
        return [{} for _ in texts]
