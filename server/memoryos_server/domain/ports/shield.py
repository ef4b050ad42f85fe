"""What looks at texts before they reach a model or memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memoryos_server.domain.core.caller import Caller


class Shield(Protocol):
    """Marks what looks like an attempt on a model, and cleans what is remembered."""

    @property
    def blocks(self) -> bool:
        """Whether what looks like an attempt is refused, not only marked."""

    async def look(self, who: Caller, texts: Sequence[str], *, where: str, param: str, owner: str = "") -> None:
        """Looks at texts that come from outside; at most once a call.

        Args:
            who: Who calls.
            texts: The texts.
            where: What they are for: `chat` or `memory`.
            param: The field they came in, for errors.
            owner: Whose memory it is about, "" if nobody's.

        Raises:
            Invalid: reason `injection_suspected`: one looks like an attempt, and such are refused.
        """

    def clean(self, text: str) -> str:
        """The text as it may be remembered."""

    def passed_on(self, text: str) -> str:
        """The text as it may go to a provider."""

    @property
    def rewrites(self) -> bool:
        """Whether `passed_on` changes anything."""


class Unshielded:
    """Lets everything pass as it is."""

    blocks = False
    rewrites = False

    async def look(self, who: Caller, texts: Sequence[str], *, where: str, param: str, owner: str = "") -> None:
        """Nothing."""

    def clean(self, text: str) -> str:
        """The text."""
        return text

    def passed_on(self, text: str) -> str:
        """The text."""
        return text


UNSHIELDED = Unshielded()
