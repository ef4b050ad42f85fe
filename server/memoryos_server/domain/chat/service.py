"""Chat: memory before, the provider in the middle, memory after. A chat answers whenever its provider does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from memoryos_server.domain.chat import builtin
from memoryos_server.domain.chat.answer import comment, parsed, settled, spliced
from memoryos_server.domain.chat.builtin import RECALL_MODEL, Quoted
from memoryos_server.domain.chat.context import (
    Block,
)
from memoryos_server.domain.chat.form import CHAT_COMPLETIONS, Form
from memoryos_server.domain.chat.gathering import Gathering
from memoryos_server.domain.chat.model import (
    Api,
    ChatAnswer,
    ChatBytes,
    ChatFinished,
    ChatOptions,
    ChatRequest,
    ChatStarted,
    MayUse,
    Memory,
    MemoryMode,
    MemoryReport,
    ModelInfo,
    Notes,
)
from memoryos_server.domain.chat.outside import outside_texts, passed_on
from memoryos_server.domain.chat.passing import Held, closing, following
from memoryos_server.domain.chat.recalling import Recalling
from memoryos_server.domain.chat.receipts import Receipts
from memoryos_server.domain.chat.remembering import Remembered, Remembering, Repeats, Sessions, plan, turns_of
from memoryos_server.domain.chat.request import ChatBody
from memoryos_server.domain.chat.responses import RESPONSES
from memoryos_server.domain.chat.sse import Piece, Tee
from memoryos_server.domain.core.audit import nothing_changes
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.consent import WITHDRAWN
from memoryos_server.domain.core.faults import Upstream, unknown_model
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.patience import in_a_hurry
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.core.text import check_id, check_session, estimate_tokens
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.core.tokens import Tokens, reported, rough_sum, rough_tokens
from memoryos_server.domain.ports import Asked, Llm, ProviderAnswer, Served
from memoryos_server.domain.ports.shield import UNSHIELDED, Shield

RECALL_LIMIT = 30
"""How many memories are asked for; the token budget decides how many go in."""

ChatEvent = ChatStarted | ChatBytes | Piece | ChatFinished
"""Streams begin with ChatStarted and, if they complete, end with ChatFinished."""

LARGE_BODY = 256 * 1024
"""A request of more characters is read in a thread: other chats are streaming meanwhile."""

_FORMS = {Api.CHAT_COMPLETIONS: CHAT_COMPLETIONS, Api.RESPONSES: RESPONSES}

_T = TypeVar("_T")

_log = Sparing(logging.getLogger(__name__))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request ready to go out."""

    body: ChatBody
    asked: Asked
    quoted: Quoted | None
    keep: Remembered | None
    report: MemoryReport
    memory_off: bool
    late: bool = False
    owner: str = ""
    subject_id: str = ""


class ChatService:
    """Continues conversations.

    Args:
        memory: The users' memory.
        llm: The providers, or None: only the built-in model answers.
        options: What to wait for and spend.
        notes: The users' typed memories, or None: there are none.
        receipts: Keeps which memories went into chats, or None: nobody does.
        remembered: Told of every completed turn whether it is known to be kept.
        spent: Told of every answer that began who asked, which model, and what it cost; returns at once.
        admit: Refuses whose budget is used up, by `TooMany`; None: nobody is refused.
        doubtful: Whether a store seems to hang: then nobody waits until a turn is known to be kept.
        keeps: Whether turns can be kept at present, as far as that is known without asking.
        away: Whether no store answers at all: then a chat passes through at once.
        may_use: Whose memory may be used, or None: everybody's.
        known_as: The id that tells a person from one who comes back under the same name after an erasure, "" for one never
            heard of; None: nobody is erased.
        shield: Looks at what users and tools say.
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
        receipts: Receipts | None = None,
        remembered: Callable[[bool], None] = lambda kept: None,
        spent: Callable[[Caller, str, Tokens], None] = lambda who, model, tokens: None,
        admit: Callable[[Caller], Awaitable[None]] | None = None,
        doubtful: Callable[[], bool] = lambda: False,
        keeps: Callable[[], bool] = lambda: True,
        away: Callable[[], bool] = lambda: False,
        may_use: MayUse | None = None,
        known_as: Callable[[str, str], Awaitable[str]] | None = None,
        shield: Shield = UNSHIELDED,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        gathering = Gathering(memory, notes, RECALL_LIMIT, explain=receipts is not None)
        self._recalling = Recalling(gathering, options, away, clock)
        self._receipts = receipts
        self._llm = llm
        self._options = options
        self._spent = spent
        self._admit = admit
        self._keeps = keeps
        self._may_use = may_use
        self._known_as = known_as
        self._shield = shield
        self._now = now
        self._sessions = Sessions(options.session_idle_seconds, clock)
        self._repeats = Repeats(clock)
        self._remembering = Remembering(memory, options.remember_deadline_seconds, remembered, doubtful, keeps)

    async def drain(self, seconds: float) -> None:
        """Waits until every completed turn is handed to memory, at most so long; for a stop of the server."""
        await self._remembering.drain(seconds)

    def forget(self, tenant_id: str, user_id: str) -> None:
        """Drops what is kept here of a user's memories."""
        self.forget_if(lambda *whose: whose == (tenant_id, user_id))

    def forget_if(self, whose: Callable[[str, str], bool]) -> None:
        """As `forget`, for every tenant and user for whom `whose` is true."""
        self._recalling.forget_if(whose)
        self._repeats.forget_if(whose)

    def forget_erased(self, whose: Callable[[str, str], bool]) -> None:
        """Drops everything that is kept of every tenant and user for whom `whose` is true: also which session they are in."""
        self.forget_if(whose)
        self._sessions.forget_if(whose)

    async def models(self) -> list[ModelInfo]:
        """The models that can be named: the built-in one, then the providers' as far as they are listed."""
        found = {RECALL_MODEL: ModelInfo(RECALL_MODEL, 0, "memoryos")}
        for item in await self._llm.models() if self._llm else ():
            created, owner = item.get("created"), item.get("owned_by")
            name = str(item["id"])
            number = created if isinstance(created, int) and 0 <= created < 2**32 else 0
            found.setdefault(name, ModelInfo(name, number, owner if isinstance(owner, str) else ""))
        return list(found.values())

    async def complete(self, who: Caller, request: ChatRequest) -> ChatAnswer:
        """The answer, at once. The turn is handed to memory before this returns.

        Raises:
            Invalid: The request is malformed, names a model that nobody serves, or (reason `injection_suspected`) is refused.
            Forbidden: The caller may not act for the user.
            TooMany: The key's budget is used up.
            UpstreamRejected: The provider refused the request.
            Upstream: The provider failed.
            DeadlineExceeded: The provider took too long; or the built-in model was asked and memory did.
            BackendDown: The built-in model was asked and memory does not answer.
        """
        ready = await self._prepare(who, request, stream=False)
        if ready.quoted is not None:
            made = _FORMS[request.api].as_json(ready.quoted.text, self._rendering(ready.body))
            answer = ProviderAnswer(made, "application/json")
        else:
            answer = await self._provider().complete(ready.asked)
        value = parsed(answer.body)
        said = _FORMS[request.api].said(value)
        self._count(who, ready, said.usage, said.generated)
        report = await self._settled(ready, said.content, ends=said.ends)
        report = _served(report, answer.served)
        self._receive(who, ready, report)
        body = answer.body if ready.memory_off else spliced(answer.body, value, report)
        return ChatAnswer(body, answer.content_type, said.content, said.reason, report)

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
        tee = _FORMS[request.api].tee(ready.body)
        held = Held(tee)
        report: MemoryReport | None = None
        told: list[Served] = []
        with self._counting(who, ready, tee):
            async with aclosing(self._source(ready, _FORMS[request.api], told.append)) as source:
                chunk = await anext(source, None)
                ready = replace(ready, report=_served(ready.report, *told))
                self._receive(who, ready, ready.report)
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
                        if raw and request.comment:
                            yield ChatBytes(comment(report))
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
                if raw and request.comment and tee.complete:
                    yield ChatBytes(comment(report))
                if tee.complete or tee.blind:
                    held.release()
                for event in _events([], held.due(), raw):
                    yield event
            yield ChatFinished(report)

    @contextmanager
    def _counting(self, who: Caller, ready: _Prepared, tee: Tee) -> Iterator[None]:
        """Counts what a stream cost, however it ends: the provider charges for what it wrote, whoever stays to read it."""
        try:
            yield
        finally:
            self._count(who, ready, tee.usage, tee.generated)

    def _count(self, who: Caller, ready: _Prepared, usage: object, generated: str) -> None:
        """Counts what an answer cost. It is there and paid for: whatever is wrong with counting, it is given."""
        try:
            self._count_known(who, ready, usage, generated)
        except Exception as error:
            _log.error("an answer is not counted: %s", type(error).__name__)

    def _count_known(self, who: Caller, ready: _Prepared, usage: object, generated: str) -> None:
        """Counts what an answer cost; one without text and without costs has not begun."""
        known = reported(usage)
        if known is None and not generated:
            return
        injected = ready.report.tokens if ready.quoted is None else 0
        if known is None:
            given = rough_sum(ready.body.texts) + injected
            known = Tokens(given, rough_tokens(generated), estimated=True)
        # The built-in model has no tokens of its own: what it says of them is an estimate, too.
        tokens = replace(known, injected=injected, estimated=known.estimated or ready.quoted is not None)
        self._spent(who, ready.body.model, tokens)

    def _receive(self, who: Caller, ready: _Prepared, report: MemoryReport) -> None:
        """Has the receipt kept that the answer's head names."""
        if self._receipts is not None and report.receipt_id:
            budget = self._options.inject_tokens if ready.quoted is None else 0
            # What is kept of the turn is known at its end; a receipt is made when the answer begins.
            kept = replace(report, event_id=ready.report.event_id)
            self._receipts.keep(who.tenant_id, ready.owner, ready.body.model, budget, kept, ready.subject_id)

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

    async def _source(
        self, ready: _Prepared, form: Form, served: Callable[[Served], None]
    ) -> AsyncGenerator[bytes, None]:
        if ready.quoted is not None:
            options = ready.body.params.get("stream_options")
            usage = isinstance(options, dict) and options.get("include_usage") is True
            for frame in form.as_sse(ready.quoted.text, self._rendering(ready.body), include_usage=usage):
                yield frame
            return
        stream = self._provider().stream(ready.asked, served)
        async with aclosing(closing(stream)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _prepare(self, who: Caller, request: ChatRequest, *, stream: bool) -> _Prepared:
        asked_at = self._now()
        body = await _aside(request.body, lambda: _FORMS[request.api].parse(request.body, stream=stream))
        if request.session_id is not None:
            check_session(request.session_id, "session_id")
        if request.idempotency_key is not None:
            check_id(request.idempotency_key, "idempotency_key")
        owner = _owner(who, request.user_id, body.user)
        texts = outside_texts(body, history=self._shield.blocks)
        await self._shield.look(who, texts, where="chat", param=_FORMS[request.api].asked, owner=owner or "")
        if self._shield.rewrites:
            body = await _aside(request.body, lambda: self._passed_on(request, body, stream=stream))
        mode = MemoryMode.OFF if owner is None else request.memory
        reads = mode in (MemoryMode.ON, MemoryMode.READ)
        writes = mode in (MemoryMode.ON, MemoryMode.WRITE)
        built_in = body.model == RECALL_MODEL
        if not built_in:
            await self._check_model(body.model)
        if self._admit is not None:
            await self._admit(who)
        block, quoted, degraded, late, reason = Block(), None, False, False, ""
        allowed: bool | None = True
        subject_id = ""
        if owner is not None and (reads or writes):
            allowed, subject_id, late = await self._allowed(who.tenant_id, owner)
        if allowed is False:
            reads = writes = False
            reason = WITHDRAWN
        if built_in:
            if reads and owner:
                quoted, degraded = await self._recalling.quote(who.tenant_id, owner, body, kept=writes)
            else:
                quoted = builtin.answer(body.question_text, (), readable=False)
            items = tuple(replace(item, tokens=estimate_tokens(item.content)) for item in quoted.items)
            block = Block("", items, sum(item.tokens for item in items))
        elif reads and allowed is None:
            degraded = True  # nobody's memory goes anywhere who may have said no
        elif reads and owner:
            block, degraded, late = await self._recalling.block(who.tenant_id, owner, body)
        keep = None
        if writes and owner and body.question is not None:
            session = request.session_id or self._sessions.current(who.tenant_id, owner)
            keep = plan(
                who.tenant_id,
                owner,
                session,
                body.question_text,
                idempotency_key=request.idempotency_key,
                event_id=lambda: self._repeats.event_id(who.tenant_id, owner, session, body.turn),
                asked_at=asked_at,
                answers=not built_in,
                subject_id=subject_id,
            )
        if keep is None:
            nothing_changes()
        report = MemoryReport(
            injected=block.items,
            tokens=block.tokens,
            source="recall" if built_in else "upstream",
            remembered="pending" if keep and self._keeps() else "false",
            event_id=keep.event_id if keep else "",
            session_id=keep.session_id if keep else "",
            degraded=degraded,
            receipt_id=self._receipts.new_id() if self._receipts and reads and self._keeps() else "",
            reason=reason,
        )
        text = await _aside(body.text, lambda: body.with_system_message(block.text)) if block.text else body.text
        asked = Asked(body.model, text, block.text, _FORMS[request.api].path)
        return _Prepared(body, asked, quoted, keep, report, mode is MemoryMode.OFF, late, owner or "", subject_id)

    async def _allowed(self, tenant_id: str, owner: str) -> tuple[bool | None, str, bool]:
        """Whether an owner's memory may be used, None if that is not to be known; who he is; and whether it took too long."""
        try:
            async with asyncio.timeout(self._options.recall_deadline_seconds):
                with in_a_hurry():
                    allowed = self._may_use is None or await self._may_use(tenant_id, owner)
                    known = await self._known_as(tenant_id, owner) if self._known_as is not None else ""
                    return allowed, known, False
        except Exception as error:  # whatever is wrong with memory, the answer still comes; cancellation passes
            _log.warning("chat goes on without memory: %s", type(error).__name__)
            return None, "", isinstance(error, TimeoutError)

    def _passed_on(self, request: ChatRequest, body: ChatBody, *, stream: bool) -> ChatBody:
        text = passed_on(body, self._shield.passed_on)
        return body if text is None else _FORMS[request.api].parse(text, stream=stream)

    def _rendering(self, body: ChatBody) -> builtin.Rendering:
        cost = rough_sum(body.texts)
        return builtin.Rendering(f"chatcmpl-{uuid7().replace('-', '')}", int(self._now().timestamp()), cost)

    def _provider(self) -> Llm:
        if self._llm is None:
            raise RuntimeError("routing let a model through that nobody serves")
        return self._llm

    async def _check_model(self, name: str) -> None:
        """Lets a model pass that somebody serves.

        Raises:
            Invalid: Nobody does.
        """
        if self._llm is None or not await self._llm.serves(name):
            raise unknown_model(name)


async def _aside(text: str, work: Callable[[], _T]) -> _T:
    """What is made of a request's text, in a thread if that is long."""
    return await asyncio.to_thread(work) if len(text) > LARGE_BODY else work()


def _served(report: MemoryReport, served: Served | None = None) -> MemoryReport:
    """The report with who answers."""
    return report if served is None else replace(report, provider=served.provider, dropped=served.dropped)


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
