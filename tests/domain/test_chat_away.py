"""Chats while it is known that no turn can be kept."""

from __future__ import annotations

import json

from memoryos.settings import MemorySettings
from memoryos_server.domain.chat.model import ChatRequest
from memoryos_server.domain.chat.service import ChatService
from tests.domain.chat_support import ANYONE, ListMemory


async def test_chat_when_turns_cannot_be_kept_then_none_is_handed_over_and_once_they_can_they_are() -> None:
    memory, told, keeps = ListMemory(), list[bool](), False
    chat = ChatService(memory, None, MemorySettings(), remembered=told.append, keeps=lambda: keeps)
    messages = [{"role": "user", "content": "My sister Ingrid keeps bees."}]
    request = ChatRequest(json.dumps({"model": "memoryos/recall", "messages": messages}))

    answer = await chat.complete(ANYONE, request)
    assert (answer.memory.remembered, told, memory.entered.is_set()) == ("false", [False], False)

    keeps = True
    answer = await chat.complete(ANYONE, request)
    assert (answer.memory.remembered, told) == ("true", [False, True])
    assert memory.said() == [("user", "My sister Ingrid keeps bees.")]
