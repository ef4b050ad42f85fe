"""What the background work of memory tells whoever counts it: numbers and kinds, never whose."""

from __future__ import annotations

from typing import Protocol


class Counts(Protocol):
    """Counts. Nothing here waits or fails."""

    def ended(self, state: str) -> None:
        """An event came to its end: `stored`, `merged`, `rejected` or `dead_letter`."""

    def consolidated(self) -> None:
        """The fresh turns of a subject were gone through."""

    def wrote(self, kind: str, records: int) -> None:
        """Versions of `segment` or `fact` records were written; a repeat after a crash counts again."""

    def embedded(self, total: int, embedded: int) -> None:
        """So many memories there are, and so many of them the models in use have embedded."""

    def refused(self, limit: str) -> None:
        """Work was refused, because as much waits as may: `backlog` or `tenant_backlog`."""

    def remembered(self, kept: bool) -> None:
        """A completed chat was handed to memory; whether it is known to be kept."""


class Uncounted:
    """`Counts` for nobody."""

    def ended(self, state: str) -> None:
        """Nothing."""

    def consolidated(self) -> None:
        """Nothing."""

    def wrote(self, kind: str, records: int) -> None:
        """Nothing."""

    def embedded(self, total: int, embedded: int) -> None:
        """Nothing."""

    def refused(self, limit: str) -> None:
        """Nothing."""

    def remembered(self, kept: bool) -> None:
        """Nothing."""
