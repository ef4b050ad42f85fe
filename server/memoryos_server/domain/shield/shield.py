"""The content shield as it is configured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.shield.detection import IDS, suspicions
from memoryos_server.domain.shield.redaction import redactor

MODES = ("off", "mark", "block")

_PIECE = 50_000
_OVERLAP = 1_000

LARGE = 20_000
"""More characters are looked at in a thread: others are served meanwhile."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """An attempt that a call seems to make; no content.

    Attributes:
        caller: Who calls.
        owner: Whose memory it is about, "" if nobody's.
        where: What the text was for: `chat` or `memory`.
        ids: The patterns found.
        blocked: Whether the call was refused.
    """

    caller: Caller
    owner: str
    where: str
    ids: tuple[str, ...]
    blocked: bool


class ContentShield:
    """The port `Shield`.

    Args:
        mode: One of `MODES`: whether texts are looked at, and whether what is found is refused.
        redact: The kinds that are taken out of what is remembered.
        upstream: Whether they are taken out of what goes to providers, too.
        suspected: Told of each call that seems to make an attempt; returns at once, or refuses it by a fault.

    Raises:
        ValueError: A kind is unknown; the message names it.
    """

    def __init__(
        self,
        mode: str,
        redact: Sequence[str] = (),
        *,
        upstream: bool = False,
        suspected: Callable[[Suspicion], None] = lambda suspicion: None,
    ) -> None:
        self._mode = mode
        self._redact = redactor(redact)
        self._upstream = upstream and bool(redact)
        self._suspected = suspected

    @property
    def blocks(self) -> bool:
        """Whether what looks like an attempt is refused, not only marked."""
        return self._mode == "block"

    @property
    def rewrites(self) -> bool:
        """Whether `passed_on` changes anything."""
        return self._upstream

    async def look(self, who: Caller, texts: Sequence[str], *, where: str, param: str, owner: str = "") -> None:
        """Looks at texts that come from outside; see the port.

        Raises:
            Invalid: reason `injection_suspected`.
        """
        if self._mode == "off" or not texts:
            return
        if sum(map(len, texts)) > LARGE:
            found = await asyncio.to_thread(_found, texts)
        else:
            found = _found(texts)
        if not found:
            return
        self._suspected(Suspicion(who, owner, where, found, self.blocks))
        if self.blocks:
            raise Invalid(
                "The text looks like an attempt to take the model over",
                reason="injection_suspected",
                param=param,
                metadata={"patterns": ",".join(found)},
            )

    def clean(self, text: str) -> str:
        """The text without what is not to be remembered."""
        return self._redact(text)

    def passed_on(self, text: str) -> str:
        """The text as it may go to a provider."""
        return self._redact(text) if self._upstream else text


def _found(texts: Sequence[str]) -> tuple[str, ...]:
    found = {name for text in texts for piece in _pieces(text) for name in suspicions(piece)}
    return tuple(name for name in IDS if name in found)


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces that overlap by more than an attempt is long: no step may hold up others for long."""
    yield text[:_PIECE]
    for start in range(_PIECE - _OVERLAP, len(text) - _OVERLAP, _PIECE - _OVERLAP):
        yield text[start : start + _PIECE]
