"""Chat: memory before, the provider in the middle, memory after. A chat answers whenever its provider does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from memoryos_server.domain.chat import builtin
from memoryos_server.domain.chat.answer import goes_on, parsed, settled, spliced
from memoryos_server.domain.chat.builtin import RECALL_MODEL, Quoted
from memoryos_server.domain.chat.context import (
    Block,
    Blocks,
    derived_of,
    ends_of,
    items_of,
    newest_of,
    notes_of,
    render,
)
from memoryos_server.domain.chat.gathering import Gathered, Gathering
from memoryos_server.domain.chat.model import (
    ChatAnswer,
    ChatBytes,
    ChatFinished,
    ChatOptions,
    ChatRequest,
    ChatStarted,
    Memory,
    MemoryMode,
    MemoryReport,
    ModelInfo,
    Notes,
    RecalledItem,
)
from memoryos_server.domain.chat.passing import Held, closing, following
from memoryos_server.domain.chat.remembering import Remembered, Remembering, Repeats, Sessions, plan, turns_of
from memoryos_server.domain.chat.request import ChatBody, parse_body
from memoryos_server.domain.chat.sse import Piece, Tee, first_choice, said_of, text_of
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import DeadlineExceeded, Fault, Invalid, Upstream
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.patience import in_a_hurry
from memoryos_server.domain.core.text import check_id, check_session, estimate_tokens
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Llm, ProviderAnswer

RECALL_LIMIT = 30
"""How many memories are asked for; the token budget decides how many go in."""

BUILTIN_RECALL_SECONDS = 5.0
"""How long the built-in model waits for memory, which is all it has."""

ChatEvent = ChatStarted | ChatBytes | Piece | ChatFinished
"""Streams begin with ChatStarted and, if they complete, end with ChatFinished."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request ready to go out."""

    body: ChatBody
    text: str
    quoted: Quoted | None
    keep: Remembered | None
    report: MemoryReport
    memory_off: bool
    late: bool = False


class ChatService:
    """Continues conversations.

    Args:
        memory: The users' memory.
        llm: The provider, or None: only the built-in model answers.
        options: What to wait for and spend.
        notes: The users' typed memories, or None: there are none.
        remembered: Told of every completed turn whether it is known to be kept.
        doubtful: Whether a store seems to hang: then nobody waits until a turn is known to be kept.
        keeps: Whether turns can be kept at present, as far as that is known without asking.
        away: Whether no store answers at all: then a chat passes through at once.
        clock: Seconds, monotonic.
        now: The present time, UTC.
    """

    def __init__(
        self,
        memory: Memory,
        llm: Llm | None,
        options: ChatOptions,
        *,
        notes: Notes | None = None,
        remembered: Callable[[bool], None] = lambda kept: None,
        doubtful: Callable[[], bool] = lambda: False,
        keeps: Callable[[], bool] = lambda: True,
        away: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._gathering = Gathering(memory, notes, RECALL_LIMIT)
        self._llm = llm
        self._options = options
        self._keeps = keeps
        self._away = away
        self._now = now
        self._blocks = Blocks(clock)
        self._sessions = Sessions(options.session_idle_seconds, clock)
        self._repeats = Repeats(clock)
        self._remembering = Remembering(memory, options.remember_deadline_seconds, remembered, doubtful)

    async def drain(self, seconds: float) -> None:
        """Waits until every completed turn is handed to memory, at most so long; for a stop of the server."""
        await self._remembering.drain(seconds)

    def forget(self, tenant_id: str, user_id: str) -> None:
        """Drops what is kept here of a user's memories; for an erasure."""
        self.forget_if(lambda *whose: whose == (tenant_id, user_id))

    def forget_if(self, whose: Callable[[str, str], bool]) -> None:
        """As `forget`, for every tenant and user for whom `whose` is true."""
        self._blocks.forget_if(whose)
        self._repeats.forget_if(whose)

    async def models(self) -> list[ModelInfo]:
        """The models that can be named: the built-in one, then the provider's as far as it lists them."""
        found = {RECALL_MODEL: ModelInfo(RECALL_MODEL, 0, "memoryos")}
        for item in await self._listed():
            created, owner = item.get("created"), item.get("owned_by")
            name = str(item["id"])
            number = created if isinstance(created, int) and 0 <= created < 2**32 else 0
            found.setdefault(name, ModelInfo(name, number, owner if isinstance(owner, str) else ""))
        return list(found.values())

    async def complete(self, who: Caller, request: ChatRequest) -> ChatAnswer:
        """The answer, at once. The turn is handed to memory before this returns.

        Raises:
            Invalid: The request is malformed, or names a model that nobody serves.
            Forbidden: The caller may not act for the user.
            UpstreamRejected: The provider refused the request.
            Upstream: The provider failed.
            DeadlineExceeded: The provider took too long; or the built-in model was asked and memory did.
            BackendDown: The built-in model was asked and memory does not answer.
        """
        ready = await self._prepare(who, request, stream=False)
        if ready.quoted is not None:
            made = builtin.as_json(ready.quoted.text, self._rendering(ready.body))
            answer = ProviderAnswer(made, "application/json")
        else:
            answer = await self._provider().complete(ready.text.encode())
        value = parsed(answer.body)
        choice = first_choice(value)
        message = choice.get("message")
        content = said_of(message) if isinstance(message, dict) else ""
        finish = choice.get("finish_reason")
        reason = finish if isinstance(finish, str) else ""
        report = await self._settled(ready, content, ends=bool(choice) and not goes_on(reason, message))
        body = answer.body if ready.memory_off else spliced(answer.body, value, report)
        return ChatAnswer(body, answer.content_type, content, reason, report)

    async def stream(self, who: Caller, request: ChatRequest, *, raw: bool) -> AsyncGenerator[ChatEvent, None]:
        """The answer as it comes. What may fail before the first byte fails before the first event.

        Closing the stream closes the provider's connection at once, and nothing is remembered. Otherwise the turn is
        handed to memory before the last frame is given. `[DONE]` is given only if the provider sent it and every choice
        had come to its end.

        Args:
            who: Who calls.
            request: The conversation.
            raw: Gives the provider's bytes (ChatBytes), unchanged, instead of parsed pieces.

        Raises:
            Invalid: As `complete`; likewise the other faults.
            Upstream: Midway: the provider broke off, or ended without completing its answer.
        """
        ready = await self._prepare(who, request, stream=True)
        tee = Tee(ready.body.choices)
        held = Held(tee)
        report: MemoryReport | None = None
        async with aclosing(self._source(ready)) as source:
            chunk = await anext(source, None)
            yield ChatStarted(ready.report)
            while chunk is not None:
                pieces = tee.feed(chunk)
                held.add(chunk)
                for event in _events(pieces, held.due(), raw):
                    yield event
                if not raw:
                    _check_readable(tee)
                if report is None and tee.done:
                    report = await self._ended(ready, tee)
                    if not (tee.complete or tee.blind):
                        break
                    held.release()
                    for event in _events([], held.due(), raw):
                        yield event
                chunk = await following(source, tee)
        if report is None:
            for event in _events(tee.finish(), held.due(), raw):
                yield event
            if not raw:
                _check_readable(tee)
            report = await self._ended(ready, tee)
            if tee.complete or tee.blind:
                held.release()
            for event in _events([], held.due(), raw):
                yield event
        yield ChatFinished(report)

    async def _ended(self, ready: _Prepared, tee: Tee) -> MemoryReport:
        """The report of a stream that brings nothing more.

        Raises:
            Upstream: The answer is not whole, and the provider did not say so itself.
        """
        if not (tee.complete or tee.blind or tee.error):
            raise Upstream("The provider's answer ended before it was complete")
        return await self._settled(ready, tee.content, ends=not (tee.error or tee.broken or tee.goes_on))

    async def _settled(self, ready: _Prepared, content: str, *, ends: bool) -> MemoryReport:
        """The report after an answer; the turn is handed to memory if the answer ends it."""
        remembered = False
        if ends and ready.keep is not None:
            turns = turns_of(ready.keep, content, self._now())
            remembered = await self._remembering.remember(ready.keep, turns, hasty=ready.late)
        return settled(ready.report, remembered, ends=ends)

    async def _source(self, ready: _Prepared) -> AsyncGenerator[bytes, None]:
        if ready.quoted is not None:
            options = ready.body.params.get("stream_options")
            usage = isinstance(options, dict) and options.get("include_usage") is True
            for frame in builtin.as_sse(ready.quoted.text, self._rendering(ready.body), include_usage=usage):
                yield frame
            return
        async with aclosing(closing(self._provider().stream(ready.text.encode()))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _prepare(self, who: Caller, request: ChatRequest, *, stream: bool) -> _Prepared:
        asked_at = self._now()
        body = parse_body(request.body, stream=stream)
        if request.session_id is not None:
            check_session(request.session_id, "session_id")
        if request.idempotency_key is not None:
            check_id(request.idempotency_key, "idempotency_key")
        owner = _owner(who, request.user_id, body.user)
        mode = MemoryMode.OFF if owner is None else request.memory
        reads = mode in (MemoryMode.ON, MemoryMode.READ)
        writes = mode in (MemoryMode.ON, MemoryMode.WRITE)
        built_in = body.model == RECALL_MODEL
        if not built_in:
            await self._check_model(body.model)
        block, quoted, degraded, late = Block(), None, False, False
        if built_in:
            if reads and owner:
                quoted, degraded = await self._quote(who.tenant_id, owner, body, kept=writes)
            else:
                quoted = _quote_nothing(body)
            block = Block("", quoted.items, sum(estimate_tokens(item.content) for item in quoted.items))
        elif reads and owner:
            block, degraded, late = await self._block(who.tenant_id, owner, body)
        keep = None
        if writes and owner and body.question is not None:
            session = request.session_id or self._sessions.current(who.tenant_id, owner)
            keep = plan(
                who.tenant_id,
                owner,
                session,
                body.question_text,
                idempotency_key=request.idempotency_key,
                event_id=lambda: self._repeats.event_id(
                    who.tenant_id, owner, session, body.question_json, body.asked_before
                ),
                asked_at=asked_at,
                answers=not built_in,
            )
        report = MemoryReport(
            injected=block.items,
            tokens=block.tokens,
            source="recall" if built_in else "upstream",
            remembered="pending" if keep and self._keeps() else "false",
            event_id=keep.event_id if keep else "",
            session_id=keep.session_id if keep else "",
            degraded=degraded,
        )
        text = body.with_system_message(block.text) if block.text else body.text
        return _Prepared(body, text, quoted, keep, report, mode is MemoryMode.OFF, late)

    async def _block(self, tenant_id: str, owner: str, body: ChatBody) -> tuple[Block, bool, bool]:
        """The block for a request; whether memory, or a part of it, did not answer; and whether it took all of its time."""
        if body.question is None or self._options.inject_tokens <= 0:
            return Block(), False, False
        if body.in_tool_loop and (known := self._blocks.get(tenant_id, owner, body.conversation)):
            return known, False, False
        block, degraded, late = await self._recalled(tenant_id, owner, body)
        # An empty one too: a tool loop that began without memories goes on without, or the provider's cache would miss.
        self._blocks.put(tenant_id, owner, body.conversation, block)
        return block, degraded, late

    async def _recalled(self, tenant_id: str, owner: str, body: ChatBody) -> tuple[Block, bool, bool]:
        """As `_block`, newly made."""
        if self._away():
            return Block(), True, False
        query = _query(body.question_text)
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

    async def _quote(self, tenant_id: str, owner: str, body: ChatBody, *, kept: bool) -> tuple[Quoted, bool]:
        """What the built-in model quotes, and whether something may be missing."""
        query = _query(body.question_text)
        if not query:
            return builtin.answer("", (), readable=True), False
        try:
            async with asyncio.timeout(BUILTIN_RECALL_SECONDS):
                found = await self._gathering.demand(tenant_id, owner, query)
                # In a thread, as in `_block`.
                quoted = await asyncio.to_thread(_quoted, query, found, kept)
        except TimeoutError:
            raise DeadlineExceeded("Memory did not answer in time") from None
        found.used(quoted.items)
        return quoted, found.degraded

    def _rendering(self, body: ChatBody) -> builtin.Rendering:
        cost = sum(estimate_tokens(text) for text in _texts(body))
        return builtin.Rendering(f"chatcmpl-{uuid7().replace('-', '')}", int(self._now().timestamp()), cost)

    def _provider(self) -> Llm:
        if self._llm is None:
            raise RuntimeError("routing let a model through that nobody serves")
        return self._llm

    async def _listed(self) -> list[dict[str, object]]:
        if self._llm is None:
            return []
        try:
            return [dict(item) for item in await self._llm.models()]
        except Fault as fault:
            _log.warning("the provider's models are not known: %s", fault.reason)
            return []

    async def _check_model(self, name: str) -> None:
        """Lets a model pass that the provider lists; any, if it has no list or does not tell it now.

        Raises:
            Invalid: Nobody serves the model.
        """
        if self._llm is not None:
            listed = {str(item["id"]) for item in await self._listed()}
            # Ollama takes names without their default tag, Gemini without the collection's prefix.
            if not listed or not listed.isdisjoint({name, f"{name}:latest", f"models/{name}"}):
                return
        details = f"Model '{name}' is not supported"
        raise Invalid("Invalid model name", reason="model_not_found", details=details, param="model")


def _owner(who: Caller, user_id: str, label: str) -> str | None:
    """Whose memory a chat uses, or None for nobody's.

    OpenAI's `user` is an abuse label; it names the owner only where the caller may name one and did not. A key made to act
    for many users that names none gets no memory, rather than one that all of them would share.
    """
    acts = who.anonymous or who.may("act_as") or who.may("admin")
    if label and acts and not user_id and who.named_user is None:
        return who.owner(label, param="user")
    if (
        not who.anonymous
        and not user_id
        and who.named_user is None
        and (who.user_id is None or "act_as" in who.permissions)
    ):
        return None
    return who.owner(user_id)


def _query(text: str) -> str:
    return ends_of(text.strip()).encode("utf-8", "replace").decode()


def _quote_nothing(body: ChatBody) -> Quoted:
    return builtin.answer(body.question_text, (), readable=False)


def _rendered(query: str, found: Gathered, body: ChatBody, budget: int) -> Block:
    return render(_items(query, found), _texts(body), budget)


def _quoted(query: str, found: Gathered, kept: bool) -> Quoted:
    recent = newest_of(found.recalled) if found.recalled else ()
    # Summaries would only repeat what was said.
    items = [item for item in _items(query, found) if item.tier != "segment"]
    return builtin.answer(query, items, readable=True, recent=recent, kept=kept)


def _items(query: str, found: Gathered) -> list[RecalledItem]:
    recalled = [] if found.recalled is None else items_of(query, found.recalled) + derived_of(query, found.recalled)
    return recalled + ([] if found.noted is None else notes_of(found.noted))


def _texts(body: ChatBody) -> list[str]:
    return [text_of(message.get("content")) for message in body.messages]


def _events(pieces: list[Piece], data: bytes, raw: bool) -> list[ChatEvent]:
    if raw:
        return [ChatBytes(data)] if data else []
    return list(pieces)


def _check_readable(tee: Tee) -> None:
    """For a stream of pieces, which can show neither an error event nor what could not be read.

    Raises:
        Upstream: There was one of these.
    """
    if tee.error:
        raise Upstream(tee.error)
    if tee.overflowed:
        raise Upstream("An event of the provider's answer is too long to be read")
