"""`memoryos/recall`: the built-in model, which quotes memory and makes nothing up.

It needs no provider, so that the first run and the tests work without a key and without a network. Its answers say that
they are quotations. What it is told is remembered like any user turn; its answers are not, because they hold nothing that
memory does not know already.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from memoryos_server.domain.chat.model import RecalledItem
from memoryos_server.domain.core.text import estimate_tokens, is_cjk

RECALL_MODEL = "memoryos/recall"
MAX_QUOTES = 3
MAX_QUOTE_CHARS = 400
MEANT = 0.2
"""The relevance from which a memory is quoted although it shares no word with the question."""

OUTDATED = 0.1
"""What is left of the worth of a sentence that is no longer believed: it is quoted only where nothing else is found."""

# The end of a sentence; not after an initial or an abbreviation ("St. Mary's", "Ursula K. Le Guin", "e.g.").
_BETWEEN = re.compile(
    r"(?<!\b[A-Za-z]\.)(?<!\b(?:St|Dr|Mr|Ms|Jr|Sr|No|vs)\.)(?<!\b(?:Mrs|etc)\.)(?<!\bProf\.)(?<=[.!?])\s+|(?<=[。！？])|\n+"
)
_ASKS = re.compile(
    r"^\s*(?:tell|remind|list|show|summari[sz]e|give|find|describe|name)\b|什么|哪|谁|几|多少|怎么|为何|告诉|提醒",
    re.IGNORECASE,
)
_TELLS = re.compile(r"\b(i|i'm|i've|i'll|i'd|my|mine|we|our)\b|[我咱俺]", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_QUESTION = re.compile(
    r"^\s*(who|whom|whose|what|which|when|where|why|how|do|does|did|is|are|was|were|can|could|will|would|should|have|has)\b",
    re.IGNORECASE,
)
_COMMON = frozenset(
    _WORD.findall(
        "a am an and are as at be been but by can could did do does for from had has have he her his how i if in is it its me "
        "my no not of on or our she so that the their them they this to us was we were what when where which who whom whose "
        "why will with would you your tell know about remember please everything anything all summarize summarise told said s t m "
        "re ve d ll"
    )
)
_COMMON_CJK = frozenset("的了吗呢我你他她是在有和么什请问吧啊哪谁")
_OFF = (
    "Memory is off for this request, so memoryos/recall has nothing to quote.",
    "本次请求未启用记忆，memoryos/recall 没有可引用的内容。",
)
_NOTHING = (
    "I have nothing in memory about this yet. (memoryos/recall only quotes memory; no language model was used.)",
    "记忆中没有与此相关的内容。（memoryos/recall 只引用记忆，不使用语言模型。）",
)
_NOTED = (
    "Noted. (memoryos/recall remembers what you tell it and quotes it when you ask; no language model was used.)",
    "已记下。（memoryos/recall 会记住你说的话，并在你提问时引用；未使用语言模型。）",
)
_HEADING = (
    "From memory (memoryos/recall only quotes memory; no language model was used):",
    "以下内容引自记忆（memoryos/recall 只引用记忆，不使用语言模型）：",
)


@dataclass(frozen=True, slots=True)
class Quoted:
    """An answer of the built-in model.

    Attributes:
        text: The answer.
        items: The memories it quotes, in order.
    """

    text: str
    items: tuple[RecalledItem, ...]


def words(text: str) -> set[str]:
    """The words of a text that tell something: case folded, a plural's s cut off, pairs of CJK characters."""
    found: set[str] = set()
    run: list[str] = []
    for token in set(_WORD.findall(text.casefold())):
        plain = []
        for char in () if token.isascii() else token:
            if is_cjk(char):
                run.append(char)
                continue
            found |= _pairs(run)
            run = []
            plain.append(char)
        found |= _pairs(run)
        run = []
        word = token if token.isascii() else "".join(plain)
        if word and word not in _COMMON:
            found.add(word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word)
    return found


def _pairs(run: Sequence[str]) -> set[str]:
    if len(run) == 1:
        return set(run) - _COMMON_CJK
    return {a + b for a, b in pairwise(run) if not {a, b} <= _COMMON_CJK}


def answer(
    question: str,
    items: Sequence[RecalledItem],
    *,
    readable: bool,
    recent: Sequence[RecalledItem] = (),
    kept: bool = False,
) -> Quoted:
    """Quotes the sentences of memory that fit a question best.

    Who tells something is told that it was noted; who asks for everything ("What do you know about me?") gets the newest.

    Args:
        question: The last user message; its script decides the answer's language.
        items: What was recalled.
        readable: Whether memory could be asked; False where the request or the caller has it off.
        recent: What was said last, newest first.
        kept: Whether the message is going to be remembered.
    """
    chinese = any(is_cjk(c) for c in question)
    if not readable:
        return Quoted(_OFF[chinese], ())
    asks = is_question(question) or bool(_ASKS.search(question))
    if kept and not asks and _TELLS.search(question):
        return Quoted(_NOTED[chinese], ())
    asked = words(question)
    if asked or not asks:
        chosen = _best(asked, items)
    else:
        chosen = _best(set(), [replace(item, score=1.0) for item in recent if item.role == "user"])
    if not chosen:
        return Quoted((_NOTED if kept and not asks else _NOTHING)[chinese], ())
    lines = [_HEADING[chinese]]
    for item, sentence in chosen:
        date = item.timestamp.strftime("%Y-%m-%d") if item.timestamp else ""
        if chinese:
            who = {"user": "你", "assistant": "助手"}.get(item.role, item.role)
            over = "（后来变了）" if item.outdated else ""
            lines.append(f"- {date}{'，' if date else ''}{f'{who}说' if who else '记有'}：「{sentence}」{over}")
        else:
            who = {"user": "you", "assistant": "the assistant"}.get(item.role, item.role)
            over = " (no longer so)" if item.outdated else ""
            lines.append(f"- {date}{', ' if date else ''}{f'{who} said' if who else 'noted'}: “{sentence}”{over}")
    return Quoted("\n".join(lines), tuple(item for item, _ in chosen))


def _best(asked: set[str], items: Sequence[RecalledItem]) -> list[tuple[RecalledItem, str]]:
    """The best sentence of each of the best memories, best first. A stored question answers nothing."""
    candidates = [
        (item, sentence.strip(), words(sentence))
        for item in items
        for sentence in _BETWEEN.split(item.content)
        if sentence.strip() and not is_question(sentence)
    ]
    rarity = Counter(word for _, _, held in candidates for word in held)
    best: dict[str, tuple[float, RecalledItem, str]] = {}
    for item, sentence, held in candidates:
        overlap = sum(math.log(1 + len(candidates) / rarity[word]) for word in asked & held)
        if not overlap and item.score < MEANT:
            continue
        score = (overlap + item.score) * (OUTDATED if item.outdated else 1.0)
        if item.id not in best or score > best[item.id][0]:
            best[item.id] = (score, item, sentence)
    ranked = sorted(best.values(), key=lambda b: -b[0])
    if not ranked:
        return []
    # Whatever stands far behind the best is there only because something had to be found.
    kept = [entry for entry in ranked if entry[0] >= 0.5 * ranked[0][0]]
    quotes: list[tuple[RecalledItem, str]] = []
    for _, item, sentence in kept:
        clipped = sentence if len(sentence) <= MAX_QUOTE_CHARS else sentence[:MAX_QUOTE_CHARS].rstrip() + "…"
        if clipped not in (quote for _, quote in quotes):
            quotes.append((item, clipped))
    return quotes[:MAX_QUOTES]


def is_question(sentence: str) -> bool:
    """Whether a sentence asks rather than tells."""
    stripped = sentence.strip()
    return stripped.endswith(("?", "？", "吗", "呢", "吗。")) or bool(_QUESTION.match(stripped))


@dataclass(frozen=True, slots=True)
class Rendering:
    """What an answer of the built-in model is written with.

    Attributes:
        id: The answer's id.
        created: Unix seconds.
        prompt_tokens: The estimated cost of the request.
    """

    id: str
    created: int
    prompt_tokens: int


def as_json(text: str, how: Rendering) -> bytes:
    """The answer in the shape of OpenAI's chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    value = {
        "id": how.id,
        "object": "chat.completion",
        "created": how.created,
        "model": RECALL_MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage_of(text, how),
    }
    return json.dumps(value, ensure_ascii=False).encode()


def as_sse(text: str, how: Rendering, *, include_usage: bool) -> Iterator[bytes]:
    """The answer as OpenAI's stream: a frame with the role, one per piece of text, the end, `[DONE]`."""
    yield _frame(how, {"role": "assistant", "content": ""}, None, include_usage)
    for piece in pieces_of(text):
        yield _frame(how, {"content": piece}, None, include_usage)
    yield _frame(how, {}, "stop", include_usage)
    if include_usage:
        yield _data(_chunk(how) | {"choices": [], "usage": usage_of(text, how)})
    yield b"data: [DONE]\n\n"


def pieces_of(text: str) -> list[str]:
    """The pieces in which a text is streamed: words, and parts of long ones."""
    return re.findall(r"\s*\S{1,40}", text)


def _chunk(how: Rendering) -> dict[str, object]:
    return {"id": how.id, "object": "chat.completion.chunk", "created": how.created, "model": RECALL_MODEL}


def _frame(how: Rendering, delta: dict[str, str], finish: str | None, include_usage: bool) -> bytes:
    value = _chunk(how) | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
    return _data(value | {"usage": None} if include_usage else value)


def _data(value: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def usage_of(text: str, how: Rendering) -> dict[str, int]:
    """OpenAI's usage of an answer, estimated."""
    said = estimate_tokens(text)
    return {"prompt_tokens": how.prompt_tokens, "completion_tokens": said, "total_tokens": how.prompt_tokens + said}
