"""The gist of a few turns in their own words: sentences that say most, and the words that name the topic.

Extractive: every sentence of a summary was said. So a summary invents nothing and needs no model, in any language; it is
what an LLM's summary is measured against, and what stands where there is none.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from memoryos_server.domain.core.text import is_cjk
from memoryos_server.domain.memory.extraction import judge
from memoryos_server.domain.ports import Turn

MAX_WORDS = 60
"""The length of a summary in words; a CJK character counts as half a word."""

MAX_TAGS = 8

_MAX_SENTENCES = 200
_SENTENCES_PER_TURN = 40
_LONG_SENTENCE = 40.0
_SHORT_SENTENCE = 3.0
_LONGEST_CHUNK = 4
_LONGEST_READ = 40
_MOST_REPEATED = 300
_SAME = 0.6  # sentences that share so much of their terms say the same

_TAKEN_BACK, _TAKEN_BACK_CJK = "No longer true: ", "已不成立:"

# Not behind an initial or an abbreviation: "St. Mary's", "Ursula K. Le Guin".
_END = re.compile(
    r"(?<!\b[A-Za-z]\.)(?<!\b(?:St|Dr|Mr|Ms|Mt|Jr|Sr|No|vs)\.)(?<!\b(?:Mrs|etc)\.)(?<!\bProf\.)(?<=[.!?])[\"')\]]*\s+(?=\S)|(?<=[。！？；])[”」』）]*|\n+"
)
_CAPTION = re.compile(r"\[image: (.*?)\]\s*$", re.DOTALL)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,:/]\d+)*")
_NAME = re.compile(r"(?<=[\w,;] )[A-Z][a-z]+|\b[A-Z]{2,}\b|\b[A-Z][a-z]+[A-Z]\w*\b")
_NUMBER = re.compile(r"\d|[一二三四五六七八九十百千万]+(?=[年月日号天周点块元岁个])")
_CORRECTS = re.compile(
    r"^\W*(?:actually|no,? wait|wait,? no|correction|sorry,? (?:i meant|not)|i meant|i mean,|i misspoke|scratch that|oops|my mistake)\b"
    r"|^\W*(?:不对|不對|更正|说错了|說錯了|我说错|我說錯|其实不是|其實不是|抱歉,?，?应该是|抱歉,?，?應該是|我是说|我是說|纠正|糾正)",
    re.IGNORECASE,
)
_TAG = re.compile(r"[a-z][a-z0-9+#.]*(?:[-'][a-z0-9]+)*")
# A tag is a label that is shown in lists and asked for by name: nothing that somebody wanted to keep to themselves.
_SECRET = re.compile(
    r"\b(?:pass(?:word|code|phrase)|pin(?: code)?|api[ -]?key|access[ -]?key|token|secret(?: key)?)s?\b"
    r"[^.!?\n]{0,40}?(?:\bis\b|\bwas\b|[:=])\s*\S+"
    r"|(?:密码|口令|密钥|令牌|验证码)[^。！？\n]{0,6}?[是为:=]\s*[^\s。，,；]+"
)
_CODED = re.compile(r"(?:[a-z]+\d+){2,}[a-z]*|(?:[a-z]+\d+)+[a-z]+\d*", re.ASCII)
_SHORTEST_CODED = 8
_CJK_BREAK = frozenset(
    "的了吗嗎呢吧啊呀是我你您他她它们們在有和与與就都也很这這那个個么麼什为為不没沒要会會能可以到去来來说說对對把被给給让讓从從"
    "上下里裡着著过過还還又再最太但而且因所如果或及等之其此每些哪谁誰怎几幾多少好想吃喝看做点點得地一二两兩三四五六七八九十只隻条條岁歲次位件"
)
_PLAIN_TEXT = """
thing things lot lots kind really going know think like good great nice well get got make made want need much many way
day days today yesterday tomorrow week month year time times people one two three first last new old yes okay sure
thanks thank please hello hey also even still maybe never always ever since every something anything everything
someone everyone back come came went take took look looking feel feeling sounds love loved glad happy hope said say
says tell told see seen saw let's actually definitely wow haha photo image picture pic congratulations perfect right bit big little long
around sorry meant mean user assistant moved move live lives work works started start able best better sometimes
usually often soon ago already yet keep kept try trying tried put give gave use used using help find found
"""
_PLAIN_WORDS = frozenset(_PLAIN_TEXT.split())


_PLAIN_CJK_TEXT = """
非常 特别 自己 当然 今天 昨天 明天 最近 现在 时候 知道 觉得 感觉 喜欢 谢谢 感谢 高兴 真的 有点 其实 已经 一直 应该 如何 开始 希望 告诉 问题
东西 事情 可能 大概 恭喜 您好 你好 早上 晚上 下午 上午 之前 之后 以后 以前 听说 认为 比较 确实 需要 一起 帮助 有趣 不错
"""
_PLAIN_CJK = re.compile("|".join(_PLAIN_CJK_TEXT.split()))


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a turn.

    Attributes:
        turn: The place of its turn.
        speaker: Who says it, "" where that goes without saying.
        role: The role of its turn.
        text: It.
        terms: Its terms and what they weigh.
    """

    turn: int
    speaker: str
    role: str
    text: str
    terms: Mapping[str, float]


def sentences(text: str) -> list[str]:
    """The sentences of a text, captions included, code left out."""
    plain = _CODE.sub("\n", text)
    caption = _CAPTION.search(plain)
    parts = [plain] if caption is None else [plain[: caption.start()], caption[1]]
    return [s for part in parts for piece in _END.split(part) if (s := piece.strip())]


def length(text: str) -> float:
    """The length in words; a CJK character is half a word."""
    signs = sum(1 for c in text if is_cjk(c))
    return signs / 2 + sum(1 for word in _WORD.findall(text) if not is_cjk(word[0]))


def asks(text: str) -> bool:
    """Whether a sentence is a question."""
    return text.rstrip("\"'”」』)） ").endswith(("?", "？", "吗", "嗎", "呢"))


def corrects(text: str) -> bool:
    """Whether a text begins as a correction of what was said before."""
    return _CORRECTS.search(text) is not None


def summarise(
    turns: Sequence[Turn],
    terms: Callable[[str], Mapping[str, float]],
    *,
    untrue: Callable[[int, str], bool] = lambda turn, sentence: False,
    most: int = MAX_WORDS,
) -> str:
    """The sentences that say most of what was said, in order, each once, under `most` words.

    A sentence counts by what it shares with all others, by names and numbers, and by who says it: what users state comes
    before what an assistant answers, and both before questions. What is corrected later is left out.

    Args:
        turns: In order.
        terms: The terms of a text and their weights.
        untrue: Whether what a sentence of a turn says was contradicted since.
        most: The longest summary, in words.
    """
    everything = _all(turns, terms)
    found = _uncorrected([s for s in everything if not untrue(s.turn, s.text)])
    if not found and everything:  # nothing but what was taken back
        last = everything[-1].text
        return cut((_TAKEN_BACK_CJK if is_cjk(last[0]) else _TAKEN_BACK) + last, most)
    if not found:  # no sentence at all: still not nothing
        return cut(next((" ".join(t.content.split()) for t in reversed(turns) if t.content.strip()), ""), most)
    scores = _scores(found)
    chosen: list[int] = []
    left = float(most)
    for at in sorted(range(len(found)), key=lambda i: (-scores[i], i)):
        cost = length(found[at].text)
        if (cost > left and chosen) or any(_alike(found[at].terms, found[c].terms) > _SAME for c in chosen):
            continue
        if chosen and scores[at] < 0.25 * scores[chosen[0]]:
            break
        chosen.append(at)
        left -= cost
        if left < _SHORT_SENTENCE:
            break
    return cut(_written([found[i] for i in sorted(chosen)], turns), most)


def cut(text: str, most: int) -> str:
    """A text of at most `most` words, cut at a word and marked where it is."""
    if length(text) <= most:
        return text
    kept: list[str] = []
    room = float(most)
    for piece in re.findall(r"\s+|\S", text) if any(map(is_cjk, text)) else re.findall(r"\s+|\S+", text):
        room -= length(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept).rstrip() + "…"


def tags(
    texts: Sequence[str],
    fold: Callable[[str], str],
    stem: Callable[[str], str],
    terms: Callable[[str], Mapping[str, float]],
    *,
    common: Collection[str] = (),
    most: int = MAX_TAGS,
) -> list[str]:
    """The words that name what texts are about, best first: folded, as a person would write them.

    Args:
        texts: What was said.
        fold: A text in one form for comparing.
        stem: The stem of a word: forms of one word are one tag.
        terms: The terms of a text; a word without any says nothing.
        common: Names that say nothing, folded: those of the speakers.
        most: How many at most.
    """
    forms: dict[str, Counter[str]] = {}
    weight: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for text in texts:
        named = {fold(name) for name in _NAME.findall(text)}
        folded = _SECRET.sub(" ", fold(text))
        for word in _TAG.findall(folded):
            word = word.removesuffix("'s").rstrip(".'-")
            if len(word) < 3 or "'" in word or word in _PLAIN_WORDS or not terms(word):
                continue
            if len(word) >= _SHORTEST_CODED and _CODED.fullmatch(
                word
            ):  # letters and digits by turns: a key, a password
                continue
            if any(name.startswith(word) for name in common):  # also as it is called for short
                continue
            forms.setdefault(stem(word), Counter())[word] += 1
            weight[stem(word)] += 3 if word in named else 1
        for run in re.findall(r"[\u3400-\u9fff]{2,}", _PLAIN_CJK.sub(" ", folded)):
            for piece in _chunks(run):
                parts.update(_parts(piece[:_LONGEST_READ]))
                if len(piece) <= _LONGEST_CHUNK:
                    forms.setdefault(piece, Counter())[piece] += 1
                    weight[piece] += 1
    repeated = {part: count for part, count in parts.most_common(_MOST_REPEATED) if count > 1}
    for part, count in repeated.items():
        # Said in several connections it is a word of its own, unless a longer one is said as often.
        if count > weight[part] and not any(part in p and p != part and c >= count for p, c in repeated.items()):
            forms.setdefault(part, Counter())[part] = count
            weight[part] = count
    # A word said in several places names the topic better than one said often in one place; longer words are rarer ones.
    ranked = sorted(weight, key=lambda s: (-weight[s] * math.log(2 + len(s) * (2 if is_cjk(s[0]) else 1)), s))
    chosen: list[str] = []
    for stemmed in ranked:
        form = min(forms[stemmed], key=lambda f: (-forms[stemmed][f], len(f), f))
        if any(form in other or other in form for other in chosen if is_cjk(form[0]) and is_cjk(other[0])):
            continue
        chosen.append(form)
        if len(chosen) == most:
            break
    return chosen


def _all(turns: Sequence[Turn], terms: Callable[[str], Mapping[str, float]]) -> list[Sentence]:
    found: list[Sentence] = []
    for at, turn in enumerate(turns):
        speaker = turn.name or ("" if turn.role == "user" else turn.role)
        for text in sentences(turn.content)[:_SENTENCES_PER_TURN]:
            plain = " ".join(text.split())[:400]
            if any(c.isalnum() for c in plain):
                found.append(Sentence(at, speaker, turn.role, plain, terms(plain)))
        if len(found) >= _MAX_SENTENCES:
            break
    return found


def _uncorrected(found: Sequence[Sentence]) -> list[Sentence]:
    """Without the sentences that a later one of the same speaker takes back."""
    gone: set[int] = set()
    for at, one in enumerate(found):
        if not corrects(one.text):
            continue
        before = [
            i for i in range(at) if found[i].speaker == one.speaker and one.turn - found[i].turn <= 4 and i not in gone
        ]
        best = max(before, key=lambda i: (_alike(found[i].terms, one.terms), i), default=None)
        if best is not None and (_alike(found[best].terms, one.terms) > 0 or best == before[-1]):
            gone.add(best)
    return [one for i, one in enumerate(found) if i not in gone]


def _scores(found: Sequence[Sentence]) -> list[float]:
    spread: Counter[str] = Counter(term for one in found for term in one.terms)
    total = len(found)
    scores = []
    for one in found:
        # Central is what shares terms with other sentences; a term in nearly all of them tells nothing of this one.
        shared = sum(w * math.log(1 + spread[t]) * math.log(1 + total / spread[t]) for t, w in one.terms.items())
        words = length(one.text)
        score = shared / (1 + math.sqrt(len(one.terms))) if one.terms else 0.0
        score *= 1 + 0.25 * min(3, len(_NAME.findall(one.text))) + 0.25 * min(2, len(_NUMBER.findall(one.text)))
        if asks(one.text):
            score *= 0.3
        if one.role != "user":
            score *= 0.6
        if judge(one.text, one.role):
            score *= 0.1
        elif words < _SHORT_SENTENCE:
            score *= 0.4
        elif words > _LONG_SENTENCE:
            score *= _LONG_SENTENCE / words
        scores.append(score)
    return scores


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The share of the shorter one's terms that both have."""
    if not one or not other:
        return 0.0
    return len(one.keys() & other.keys()) / min(len(one), len(other))


def _written(chosen: Sequence[Sentence], turns: Sequence[Turn]) -> str:
    """The sentences as text; the speaker is named where it changes and there are several, or is not the user."""
    several = len({turn.name for turn in turns}) > 1 or any(turn.name for turn in turns)
    lines: list[str] = []
    last: str | None = None
    for one in chosen:
        text = one.text if one.text[-1] in ".!?。！？；…" else one.text + ("。" if is_cjk(one.text[-1]) else ".")
        if one.speaker != last and (one.speaker if not several else one.speaker or last is not None):
            text = f"{one.speaker or 'user'}: {text}"
        last = one.speaker
        lines.append(text)
    out = ""
    for line in lines:
        glue = "" if not out or (out[-1] in "。！？；" and is_cjk(line[0])) else " "
        out += glue + line
    return out


def _chunks(run: str) -> list[str]:
    """The pieces of a CJK run between the characters that join words, if they are as long as words are."""
    pieces: list[str] = []
    piece = ""
    for sign in run:
        if sign in _CJK_BREAK:
            pieces.append(piece)
            piece = ""
        else:
            piece += sign
    pieces.append(piece)
    return [p for p in pieces if len(p) >= 2]


def _parts(chunk: str) -> list[str]:
    """What a chunk may be made of, as words go."""
    return [chunk[i : i + n] for n in range(2, 6) for i in range(len(chunk) - n + 1)]
