"""What memory gives a chat: a block for its request, or the built-in model's quotes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from memoryos_server.domain.chat import builtin
from memoryos_server.domain.chat.builtin import Quoted
from memoryos_server.domain.chat.context import (
    Block,
    Blocks,
    derived_of,
    items_of,
    newest_of,
    notes_of,
    render,
)
from memoryos_server.domain.chat.gathering import Gathered, Gathering
from memoryos_server.domain.chat.model import ChatOptions, RecalledItem
from memoryos_server.domain.chat.query import query_of
from memoryos_server.domain.chat.request import ChatBody
from memoryos_server.domain.chat.watch import Watches
from memoryos_server.domain.core.faults import DeadlineExceeded
from memoryos_server.domain.core.patience import in_a_hurry
from memoryos_server.domain.core.saying import Sparing

BUILTIN_RECALL_SECONDS = 5.0
"""How long the built-in model waits for memory, which is all it has."""

_log = Sparing(logging.getLogger(__name__))


class Recalling:
    """Asks memory for what belongs to a chat.

    Args:
        gathering: Asks all of memory.
        options: What to wait for and spend.
        away: Whether no store answers at all.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, gathering: Gathering, options: ChatOptions, away: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self._gathering = gathering
        self._options = options
        self._away = away
        self._blocks = Blocks(clock)
        self._watches = Watches()

    def forget_if(self, whose: Callable[[str, str], bool]) -> None:
        """Drops what is kept of the users' memories for whom `whose`, of tenant and user, is true."""
        self._blocks.forget_if(whose)
        self._watches.forget_if(whose)

    async def block(self, tenant_id: str, owner: str, body: ChatBody) -> tuple[Block, bool, bool]:
        """The block for a request; whether memory, or a part of it, did not answer; and whether it took all of its time."""
        if body.question is None or self._options.inject_tokens <= 0:
            return Block(), False, False
        if body.in_tool_loop and (known := self._blocks.get(tenant_id, owner, body.conversation)):
            return known, False, False
        watch = self._watches.begin(tenant_id, owner)
        block, degraded, late = await self._recalled(tenant_id, owner, body)
        # An empty one too: a tool loop that began without memories goes on without, or the provider's cache would miss.
        if not watch.over:
            self._blocks.put(tenant_id, owner, body.conversation, block)
        return block, degraded, late

    async def _recalled(self, tenant_id: str, owner: str, body: ChatBody) -> tuple[Block, bool, bool]:
        """As `block`, newly made."""
        if self._away():
            return Block(), True, False
        query = query_of(body)
        try:
            async with asyncio.timeout(self._options.recall_deadline_seconds):
                # A little sooner than all of it, so that what has come by then can be put in.
                patience = 0.9 * self._options.recall_deadline_seconds
                with in_a_hurry():
                    found = await self._gathering.gather(tenant_id, owner, query, patience)
                if found.nothing:
                    return Block(), found.degraded, found.late
                # In a thread: long texts take long to compare, and other chats are streaming meanwhile.
                block = await asyncio.to_thread(_rendered, query, found, body, self._options.inject_tokens)
        except Exception as error:  # whatever is wrong with memory, the answer still comes; cancellation passes
            _log.warning("chat goes on without memory: %s", type(error).__name__)
            return Block(), True, isinstance(error, TimeoutError)
        found.used(block.items)
        return block, found.degraded, found.late

    async def quote(self, tenant_id: str, owner: str, body: ChatBody, *, kept: bool) -> tuple[Quoted, bool]:
        """What the built-in model quotes, and whether something may be missing."""
        query = query_of(body)
        if not query:
            return builtin.answer("", (), readable=True), False
        try:
            async with asyncio.timeout(BUILTIN_RECALL_SECONDS):
                found = await self._gathering.demand(tenant_id, owner, query)
                # In a thread, as in `block`.
                quoted = await asyncio.to_thread(_quoted, query, found, kept)
        except TimeoutError:
            raise DeadlineExceeded("Memory did not answer in time") from None
        found.used(quoted.items)
        return quoted, found.degraded


def _rendered(query: str, found: Gathered, body: ChatBody, budget: int) -> Block:
    return render(_items(query, found), body.texts, budget)


def _quoted(query: str, found: Gathered, kept: bool) -> Quoted:
    recent = newest_of(found.recalled) if found.recalled else ()
    # Summaries would only repeat what was said.
    items = [item for item in _items(query, found) if item.tier != "segment"]
    return builtin.answer(query, items, readable=True, recent=recent, kept=kept)


def _items(query: str, found: Gathered) -> list[RecalledItem]:
    recalled = [] if found.recalled is None else items_of(query, found.recalled) + derived_of(query, found.recalled)
    return recalled + ([] if found.noted is None else notes_of(found.noted))
