"""What is remembered of a completed turn, and under which ids."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from memoryos_server.domain.chat.context import split_long, without_blocks
from memoryos_server.domain.chat.model import Memory
from memoryos_server.domain.core.conversation import NewTurn
from memoryos_server.domain.core.faults import Exists, Fault
from memoryos_server.domain.core.ids import derived_uuid, uuid7
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.core.text import MAX_TEXT, sound

MAX_SESSIONS = 10_000
REPEAT_SECONDS = 600.0
"""So long after a request the same one is the same turn, asked for again."""

MAX_UNDER_WAY = 1000
"""Turns that wait for a slow store at once; further ones are said not to be remembered."""

_log = Sparing(logging.getLogger(__name__))


@dataclass(frozen=True, slots=True)
class Remembered:
    """A turn that will be remembered once it is complete.

    Attributes:
        tenant_id: The tenant.
        user_id: Whose memory it is.
        event_id: The id of the user's part; the answer's has the suffix `:assistant`.
        session_id: The conversation.
        question: The user's text, without echoed blocks; may be blank.
        asked_at: When the request came.
        answers: Whether the answer is remembered too.
        first_stands: Of several answers under one event id the first is kept; else all that differ.
        subject_id: Under what the person was known when the request came; "": not yet, or that is not known.
    """

    tenant_id: str
    user_id: str
    event_id: str
    session_id: str
    question: str
    asked_at: datetime
    answers: bool
    first_stands: bool = False
    subject_id: str = ""


def plan(
    tenant_id: str,
    user_id: str,
    session_id: str,
    question: str,
    *,
    idempotency_key: str | None,
    event_id: Callable[[], str],
    asked_at: datetime,
    answers: bool,
    subject_id: str = "",
) -> Remembered | None:
    """What to remember of a turn; None if there is nothing.

    With an idempotency key the event id follows from the key and the question: a repeat is a duplicate, and whatever the
    provider answers the second time, the first answer stands. Without one, `event_id` gives it.
    """
    question = _clean(question)
    if not question.strip() and not answers:
        return None
    keyed = idempotency_key is not None
    made = derived_uuid("chat", idempotency_key, question) if idempotency_key is not None else event_id()
    return Remembered(tenant_id, user_id, made, session_id, question, asked_at, answers, keyed, subject_id)


def turns_of(what: Remembered, answer: str, answered_at: datetime) -> list[NewTurn]:
    """The turns to keep: the question and the answer, each in pieces if it is long."""
    turns = _pieces(what, "user", what.question, what.event_id, what.asked_at)
    if what.answers:
        turns += _pieces(what, "assistant", _clean(answer), f"{what.event_id}:assistant", answered_at)
    return turns


def _clean(text: str) -> str:
    return without_blocks(sound(text))


def _pieces(what: Remembered, role: str, text: str, event_id: str, said_at: datetime) -> list[NewTurn]:
    return [
        NewTurn(
            role=role,
            content=piece,
            event_id=event_id if number == 1 else f"{event_id}:{number}",
            session_id=what.session_id,
            timestamp=said_at,
        )
        for number, piece in enumerate(split_long(text, MAX_TEXT), 1)
        if piece.strip()
    ]


def _another(turn: NewTurn) -> NewTurn:
    """The turn as it is kept beside a different answer to the same question; the same answer again is a duplicate."""
    if turn.role != "assistant" or turn.event_id is None:
        return turn
    return replace(turn, event_id=derived_uuid("another", turn.event_id, turn.content))


class Remembering:
    """Hands completed turns to memory. What was handed over is never taken back, also if the client leaves."""

    def __init__(
        self,
        memory: Memory,
        deadline_seconds: float,
        told: Callable[[bool], None] = lambda kept: None,
        doubtful: Callable[[], bool] = lambda: False,
        keeps: Callable[[], bool] = lambda: True,
    ) -> None:
        self._memory = memory
        self._told = told
        self._doubtful = doubtful
        self._keeps = keeps
        self._deadline = deadline_seconds
        self._under_way: set[asyncio.Task[bool]] = set()

    async def remember(self, what: Remembered, turns: Sequence[NewTurn], *, hasty: bool = False) -> bool:
        """Whether the turns are known to be kept. After the deadline the attempt goes on, unwaited for.

        Args:
            what: How they are kept.
            turns: What was said.
            hasty: The chat has spent its time on memory already: a moment must do.
        """
        if not turns:
            return False
        # Where the store is known to be away, trying costs the chat more than its provider's answer, and logs each time.
        seconds = 0.1 * self._deadline if hasty else self._deadline
        kept = self._keeps() and await self._handed(what, turns, seconds)
        self._told(kept)
        return kept

    async def _handed(self, what: Remembered, turns: Sequence[NewTurn], seconds: float) -> bool:
        if len(self._under_way) >= MAX_UNDER_WAY:
            _log.warning("turn not remembered: too many are waiting for the store")
            return False
        task = asyncio.create_task(self._keep(what, turns))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        # A store that seems to hang has had its time when memory was asked; what it makes of the turn comes later.
        # `wait` leaves the task alone when it is cancelled itself.
        done, _ = await asyncio.wait({task}, timeout=0 if self._doubtful() else seconds)
        return bool(done) and task.result()

    async def drain(self, seconds: float) -> None:
        """Waits for what is under way, at most so long, then gives it up."""
        if self._under_way:
            _, late = await asyncio.wait(set(self._under_way), timeout=seconds)
            for task in late:
                task.cancel()

    async def _keep(self, what: Remembered, turns: Sequence[NewTurn]) -> bool:
        try:
            try:
                await self._hand(what, turns)
            except Exists:
                if not what.first_stands:
                    await self._hand(what, [_another(turn) for turn in turns])
        except Fault as fault:
            _log.warning("turn not remembered: %s", fault.reason)
            return False
        except Exception as error:  # the answer matters more than its memory
            _log.warning("turn not remembered: %s", type(error).__name__)
            return False
        return True

    async def _hand(self, what: Remembered, turns: Sequence[NewTurn]) -> None:
        await self._memory.remember(what.tenant_id, what.user_id, turns, subject_id=what.subject_id)


class Sessions:
    """Which session a user is in, by idle gap. Bounded; in this process only."""

    def __init__(self, idle_seconds: float, clock: Callable[[], float]) -> None:
        self._idle = idle_seconds
        self._clock = clock
        self._last: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()

    def current(self, tenant_id: str, user_id: str) -> str:
        """The user's session: the last one, or a new one after the idle gap."""
        now = self._clock()
        kept = self._last.pop((tenant_id, user_id), None)
        session = kept[0] if kept and now - kept[1] < self._idle else uuid7()
        self._last[tenant_id, user_id] = (session, now)
        if len(self._last) > MAX_SESSIONS:
            self._last.popitem(last=False)
        return session

    def forget_if(self, whose: Callable[[str, str], bool]) -> None:
        """Drops what is kept of every tenant and user for whom `whose` is true."""
        for key in [key for key in self._last if whose(*key)]:
            del self._last[key]


class Repeats:
    """Which turn of each session came last. Bounded; in this process only.

    The same request is the same turn: an answer is asked for again, an earlier message was edited, a tool loop goes on.
    Whoever says the same once more is told from that by what is sent along: the first time stands among the earlier
    messages. Where nothing is sent along the two cannot be told apart; then the text, which is known, is kept once, and
    every answer that differs.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: OrderedDict[tuple[str, str, str], tuple[bytes, str, float]] = OrderedDict()

    def event_id(self, tenant_id: str, user_id: str, session_id: str, turn: str | None) -> str:
        """The id of the turn: a new one, or that of the session's last turn if it is the same.

        Args:
            tenant_id: The tenant.
            user_id: Whose memory it is.
            session_id: The conversation.
            turn: What tells the turn from the others of its session; None: it is always a new one.
        """
        if turn is None:
            return uuid7()
        key, now = (tenant_id, user_id, session_id), self._clock()
        digest = hashlib.blake2b(turn.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        kept = self._last.pop(key, None)
        same = kept is not None and kept[0] == digest and now - kept[2] < REPEAT_SECONDS
        event_id = kept[1] if kept is not None and same else uuid7()
        self._last[key] = (digest, event_id, now)
        if len(self._last) > MAX_SESSIONS:
            self._last.popitem(last=False)
        return event_id

    def forget_if(self, whose: Callable[[str, str], bool]) -> None:
        """Drops what is kept of every tenant and user for whom `whose` is true."""
        for key in [k for k in self._last if whose(k[0], k[1])]:
            del self._last[key]
