"""Facts in Chinese text, simplified and traditional.

Clauses are what stands between commas. A clause without a subject is about that of the clause before, as Chinese has it. As
in English, every clause is matched from its first word to its end, so that a question, a wish, a condition or a report
gives nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from memoryos_server.domain.memory.extraction import sentences
from memoryos_server.domain.memory.extraction.chinese_denials import (
    DENIABLE,
    DENIED_OF,
    NOT_ALL,
    PARTLY,
    TAKES,
    UNDONE,
)
from memoryos_server.domain.memory.extraction.chinese_values import values
from memoryos_server.domain.memory.extraction.chinese_verbs import MINE, SAID, SAID_OF, VERBS, Saying
from memoryos_server.domain.memory.extraction.dates import Span
from memoryos_server.domain.memory.extraction.model import ASSERTED, ENDED, FAVORITE, SPEAKER, Fact
from memoryos_server.domain.memory.extraction.text import TASK, Sentence, lower, masked, words

LONGEST_CLAUSE = 80
"""A longer clause is no plain statement, in characters."""

_HAN = re.compile(r"[\u4e00-\u9fff]")
_CUT = re.compile(
    r"[,，;；:：]\s*|(?<=[\u4e00-\u9fff])\s+(?=[\u4e00-\u9fff])|(?<=.)(?=但是|不过(?!敏)|可是|而且|所以|因为|并且|然后)|——+"
)
_AWAY = re.compile("出差|出公差|旅游|旅行|度假|开会|参会|培训|露营")
"""Whoever is away stays somewhere, and lives elsewhere."""
_UNREAL = re.compile(
    "如果|假如|要是|假设|假若|倘若|万一|的话|也许|或许|说不定|大概|好像|似乎|仿佛|梦见|梦到|梦里|"
    "假装|但愿|比如|例如|譬如|开玩笑|"
    "骗你|要不是|早知道|除非|本来想|差点|差一点|是不是|有没有|会不会|要不要|能不能|可不可以|该不该|是否|到底|难道|不是真的|谣言|瞎说"
)
_KIDDING = re.compile("(?:我)?(?:只是|就是)?(?:开玩笑|逗你|骗你)")
_ASKS = re.compile("吗|么$|什么|怎么|怎样|哪|谁|多少|为何|何时|几[个点岁]|呢$|吧$")
_SAYS = re.compile(
    "我(?:听说|怀疑|猜|告诉(?!你)|问|跟(?!你).{1,4}说)|(?!我|跟你说|告诉你)(?:.{1,8})(?:说|告诉我?|觉得|"
    "认为|以为|建议|问我?|听说|据说|猜|写道|相信|怀疑)(?!话|的是|中文|英语|普通话|粤语|日语|"
    "法语|德语|[^,]{1,4}语)"
)
_MAYBE = re.compile("可能|应该|估计|或者|大约|几乎|差不多|最好|不一定|得看|看情况")
_LEAD = re.compile(
    "(?:你好|您好|嗨|哈喽|大家好|朋友|对了|其实|说实话|老实说|顺便说一下|顺便提一下|另外|还有|而且|"
    "但是?|不过(?!敏)|可是|所以|因为|然后|后来|于是|并且|同时|"
    "嗯+|哦|啊|哈哈+|是的|是啊|对(?=[,，。!！ ]|$)|对啊|没错|好的|谢谢|抱歉|更正一下|更正|"
    "不好意思|记住|请记住|记得|请记得|帮我记住|帮我记一下|补充一下|告诉你|跟你说|"
    "现在|目前|最近|平时|一般|通常|如今|当时|今天|从小|自我介绍一下|简单介绍一下|我来介绍一下|介绍一下|"
    "虽然|除此之外|事实上|实际上|总之|首先|其次|最后|[0-9]+[.、)]|[-*•·]|"
    "[\\s。!！~])+[:：]?"
)
_ME = re.compile(
    "(?:我们|我|本人|俺|咱们?|该?用户|该?使用者)(?!的|家|妈|爸|姐|妹|哥|弟|老婆|老公|妻|"
    "丈夫|女|男|儿|朋友|同事|同学|爷|奶|外|舅|姑|叔|表|堂|闺蜜|室友|邻居|老板|上司|岳|婆|公|"
    "嫂)"
)
_KIN = (
    "姐姐|妹妹|哥哥|弟弟|妈妈|爸爸|母亲|父亲|爸妈|父母|老婆|妻子|太太|老公|丈夫|先生|女朋友|男朋友|"
    "女友|男友|儿子|女儿|孩子|爷爷|奶奶|外公|外婆|姥姥|姥爷|"
    "舅舅|姑姑|叔叔|阿姨|姨妈|表哥|表姐|表弟|表妹|堂哥|堂姐|堂弟|堂妹|侄子|侄女|外甥|岳父|岳母|"
    "婆婆|公公|嫂子|姐夫|妹夫|未婚妻|未婚夫|妈|爸|姐|妹|哥|弟"
)
_FRIENDS = "好朋友|朋友|闺蜜|同事|同学|室友|邻居|老板|上司|老师|男同事|女同事|发小|导师|队友"
_PETS = "狗狗|小狗|猫咪|小猫|狗|猫|兔子|仓鼠|鹦鹉|乌龟|宠物"
_OTHER = re.compile(
    f"(?:我们?)(?:家)?(?:的)?(?:大|小|二|亲|好|最好的|一个)?(?P<rel>{_KIN}|{_FRIENDS}|{_PETS})(?!们|家|的(?!名字))"
)
_PARTNERS = words("老婆 妻子 太太 老公 丈夫 先生 女朋友 男朋友 女友 男友 未婚妻 未婚夫")
_SOMEONE_ELSE = re.compile("你|您|他|她|它|大家|有人|别人|人们|这|那|每|很多|有些|有的|对方|谁|咱|听说|据说")
_NAMED = re.compile("(?:(?:的?名字)?(?:叫做?|是)|名叫|名字叫)(?P<v>[\u4e00-\u9fff]{2,4}|[a-z][a-z .'-]{1,20})$")
_BEFORE = re.compile("(?:以前|曾经|曾|过去|之前|从前|小时候|原来|原先|早年)(?:都|一直|也)*")
_NOT_ANY_MORE = re.compile("(?:已经不再?|不再|再也不|现在不再?|早就不|早已不|如今不|已不再?)(?!是很|太|怎么|想)")
_NOT = re.compile(
    "(?:不|没|未|别|无|从不|从来不|从没|从来没|并不|并没|一点也不|一点都不|还没|绝不|不是|哪有|很少|不太|很难)"
)
_ADVERBS = re.compile(
    "(?:现在|目前|一直|真的|其实|也|还|都|就(?![职读业])|已经|刚刚?|最近|平时|特别|非常|很|"
    "超级?|挺|比较|最|从小|本来|今年|总是|总|经常|常常?|有时候?|更加?|"
    "主要|一般|通常|尤其|十分|这几年|个人|自己|又|终于|正式|目前为止|开始|平常|仍然?|依然|只|确实|"
    "特地|后来|大学|毕业后|于是|是真的|绝对|一家人|和家人|跟家人|全家|们)+"
)
_HEDGED = re.compile("有点|有些|有时候?|算是|我觉得|我想|我感觉")
_OPINION = re.compile("我(?:觉得|感觉|认为)(?:自己)?(?=.)|我想(?=我)")


def facts(
    text: str, spans: Sequence[Span], said_at: datetime, speaker: str, fold: Callable[[str], str]
) -> Iterator[Fact]:
    """The facts of a Chinese text, in its order."""
    if not _HAN.search(text):
        return
    plain = masked(text)
    low = aligned(plain, fold)
    traditional = low != lower(plain) and any(
        a != b and "\u4e00" <= b <= "\u9fff" for a, b in zip(low, plain, strict=True)
    )
    whole = Sentence.split(low)
    starts = [span.offset for span in spans]
    for i, sentence in enumerate(whole):
        if i + 1 < len(whole) and _KIDDING.match(low[whole[i + 1].begin : whole[i + 1].end].lstrip()):
            continue
        if TASK.search(low, sentence.begin, sentence.end):
            return
        if sentence.end - sentence.begin > 2000 or _UNREAL.search(low, sentence.begin, sentence.end):
            continue
        subject = ""
        begin = sentence.begin
        cuts = [(m.start(), m.end()) for m in _CUT.finditer(low, sentence.begin, sentence.end)]
        ends = [*cuts, (sentence.end, sentence.end)]
        if sentence.asks:
            ends.pop()
        for end, behind in ends:
            near = spans[bisect_left(starts, begin) : bisect_left(starts, end)]
            reader = _Reader(text, low, near, traditional=traditional)
            if end - begin > LONGEST_CLAUSE:
                subject = ""
            elif _SAYS.match(low, reader.skip(begin, end), end):
                break
            else:
                found, subject = reader.read(begin, end, subject)
                away = _AWAY.search(low, sentence.begin, begin)
                yield from (fact for fact in found if not (away and fact.predicate == "lives_in"))
            begin = behind


def aligned(text: str, fold: Callable[[str], str]) -> str:
    """The folded text with every character in its place."""
    folded = fold(text)
    if len(folded) == len(text):
        return folded
    pieces = []
    for line in re.split(r"(\n|。|,|，)", text):
        folded = fold(line)
        pieces.append(folded if len(folded) == len(line) else "".join(f if len(f := fold(c)) == 1 else c for c in line))
    return "".join(pieces)


class _Reader:
    """Reads one clause."""

    def __init__(self, text: str, low: str, spans: Sequence[Span], *, traditional: bool) -> None:
        self._text = text
        self._low = low
        self._spans = spans
        self._traditional = traditional

    def skip(self, at: int, end: int) -> int:
        """Where the clause says something: behind interjections and times."""
        while True:
            start = at
            if lead := _LEAD.match(self._low, at, end):
                at = lead.end()
            for span in self._spans:
                if at <= span.offset <= at + 1 and self._low[at : span.offset] in ("", "从", "自", "在", "于"):
                    at = span.offset + len(span.text)
                    while at < end and self._low.startswith(("开始", "以来", "起", "的时候", "时", "左右", "我就"), at):
                        at += 2 if self._low[at] in "开以左" else 3 if self._low.startswith("的时候", at) else 1
            if at == start:
                return at

    def read(self, begin: int, end: int, before: str) -> tuple[list[Fact], str]:
        """The facts of a clause and its subject, "" if that is nobody known."""
        low = self._low
        while end > begin and low[end - 1] in "!！~～ 啊呀哦啦哈的" and not low.endswith(("是的",), begin, end):
            if low[end - 1] == "的" and not low.startswith("是", begin + 1):
                break
            end -= 1
        at = self.skip(begin, end)
        own = _ME.match(low, at, end)
        if _ASKS.search(low, at, end):
            return [], ""
        if _MAYBE.search(low, at, end):
            return [], SPEAKER if own else ""
        if opinion := _OPINION.match(low, at, end):
            at = opinion.end()
            own = _ME.match(low, at, end) or _ME.match(low, self.skip(begin, end), end)
        for saying in MINE:
            if (match := saying.pattern.match(low, at, end)) and (before in ("", SPEAKER) or low[at] == "我"):
                return self._say(SPEAKER, saying, match, begin, end, ended=False), SPEAKER
        if own:
            return self._phrase(SPEAKER, max(at, own.end()), begin, end), SPEAKER
        if other := _OTHER.match(low, at, end):
            return self._other(other, begin, end)
        if _SOMEONE_ELSE.match(low, at, end) or not before:
            return [], ""
        return self._phrase(before, at, begin, end), before

    def _other(self, match: re.Match[str], begin: int, end: int) -> tuple[list[Fact], str]:
        kin = self._text[match.start("rel") : match.end("rel")]
        plain = match["rel"]
        if named := _NAMED.match(self._low, match.end(), end):
            name = self._text[named.start("v") : named.end("v")].strip()
            if re.search("老师|医生|师$|员$|生$|家$|人$|护士|经理|教授|律师|司机|警察", named["v"]):
                return self._phrase(kin, match.end(), begin, end), kin
            if re.fullmatch(_PETS, plain):
                return [self._fact(SPEAKER, "has_pet", f"{kin}{name}", 0.92, begin, end)], ""
            predicate = (
                "partner" if plain in _PARTNERS else "has_relative" if re.fullmatch(_KIN, plain) else "has_friend"
            )
            return [self._fact(SPEAKER, predicate, f"{kin}{name}", 0.92, begin, end)], f"{kin}{name}"
        if re.fullmatch(_PETS, plain):
            if re.match(
                "(?:上周|昨天|去年|刚刚?|已经|不久前)*(?:去世|死|走|离世|过世)了",
                self._low[self.skip(match.end(), end) : end],
            ):
                return [self._fact(SPEAKER, "has_pet", kin, 0.85, begin, end, ended=True)], ""
            return [], ""
        return self._phrase(kin, match.end(), begin, end), kin

    def _phrase(self, subject: str, at: int, begin: int, end: int) -> list[Fact]:
        """What a verb phrase says of a subject."""
        low = self._low
        at = self.skip(at, end) if at < end else at
        ended = False
        while at < end:
            start = at
            if match := _BEFORE.match(low, at, end):
                ended, at = True, match.end()
            if match := _NOT_ANY_MORE.match(low, at, end):
                stop = end - 1 if low[end - 1] == "了" else end
                over = self._verbs(subject, match.end(), begin, stop, ended=True)
                return over or self._untaken(subject, match.end(), begin, stop)
            if match := _ADVERBS.match(low, at, end):
                at = match.end()
            at = self.skip(at, end)
            if at == start:
                break
        if not ended and low.startswith("对", at):
            if found := SAID_OF.pattern.match(low, at, end):
                return self._say(subject, SAID_OF, found, begin, end, ended=False)
            if (found := DENIED_OF.pattern.match(low, at, end)) and self._plain(begin, at):
                return self._deny(subject, DENIED_OF, found, begin, end)
        if match := _NOT.match(low, at, end):
            if low[end - 1] == "了" and match[0] == "不":
                # "我不在谷歌工作了": no longer.
                over = self._verbs(subject, match.end(), begin, end - 1, ended=True)
                return over or self._untaken(subject, match.end(), begin, end - 1)
            for saying in SAID:
                if (found := saying.pattern.match(low, at, end)) and not ended:
                    if said := self._say(subject, saying, found, begin, end, ended=False):
                        return said
                    break  # "我不吃素" avoids nothing, and denies something
            return [] if ended else self._denied(subject, match, begin, end)
        return self._verbs(subject, at, begin, end, ended=ended)

    def _plain(self, begin: int, at: int) -> bool:
        """Whether a clause that denies something at a place denies it always and for sure."""
        return not (self._spans or PARTLY.search(self._low, begin, at) or _HEDGED.search(self._low, begin, at))

    def _denied(self, subject: str, negation: re.Match[str], begin: int, end: int) -> list[Fact]:
        """What a negated verb phrase denies, if it denies all of it."""
        low, at = self._low, negation.end()
        done = negation[0] in ("没", "并没")
        if (not done and negation[0] not in ("不", "并不")) or not self._plain(begin, negation.start()):
            return []
        if NOT_ALL.match(low, at, end) or (done and re.search("过(?!敏)|了", low[at:end])):
            return []
        # "没有狗" has its verb in the negation, "没有养狗" behind it; "不是在谷歌工作" denies what stands behind 是.
        places = [at + 1, at] if low.startswith(("有", "是"), at) else [at]
        for place in places:
            for saying in VERBS:
                match = saying.pattern.match(low, place, end)
                if match is None or match.end() < end:
                    continue
                if saying.predicate in (UNDONE if done else DENIABLE) and not saying.ended:
                    return self._deny(subject, saying, match, begin, end)
                break
        return []

    def _deny(self, subject: str, saying: Saying, match: re.Match[str], begin: int, end: int) -> list[Fact]:
        said = self._say(subject, saying, match, begin, end, ended=True) if "v" in match.groupdict() else []
        # "我不会说法语和德语": one of them, or both?
        sure = len(said) == 1 or "或" in match["v"] or "、" in match["v"]
        return [replace(fact, denied=True) for fact in said] if sure else []

    def _untaken(self, subject: str, at: int, begin: int, end: int) -> list[Fact]:
        """What is taken no more, as in 我不喝咖啡了: whether it was liked or used before, nobody says."""
        match = TAKES.match(self._low, at, end)
        if match is None or not self._plain(begin, at):
            return []
        taken = [self._text[match.start("v") : end], self._text[match.start() : end]]
        if not self._values(match, "v", "thing"):
            return []
        found = [self._fact(subject, "likes", value, 0.85, begin, end, ended=True) for value in taken]
        found.append(self._fact(subject, "uses", taken[0], 0.85, begin, end, ended=True))
        return [replace(fact, denied=True) for fact in found]

    def _verbs(self, subject: str, at: int, begin: int, end: int, *, ended: bool) -> list[Fact]:
        if match := _ADVERBS.match(self._low, at, end):
            at = match.end()
        for saying in VERBS:
            if saying.predicate == "name" and not _ME.search(self._low, begin, at):
                continue  # "有一道菜,叫做清蒸鲈鱼"
            if match := saying.pattern.match(self._low, at, end):
                if saying.predicate in ("switch", "both"):
                    return self._two(subject, saying, match, begin, end, ended=ended)
                if found := self._say(subject, saying, match, begin, end, ended=ended or saying.ended):
                    return found
        return []

    def _two(
        self, subject: str, saying: Saying, match: re.Match[str], begin: int, end: int, *, ended: bool
    ) -> list[Fact]:
        if saying.predicate == "switch":
            old, new = self._values(match, "old", "tool"), self._values(match, "v", "tool")
            return [
                *(self._fact(subject, "uses", value, 0.85, begin, end, ended=True) for value in old),
                *(self._fact(subject, "uses", value, 0.85, begin, end) for value in new),
            ]
        return [
            *(
                self._fact(subject, "works_at", v, 0.9, begin, end, ended=ended)
                for v in self._values(match, "o", "org")
            ),
            *(
                self._fact(subject, "has_role", v, 0.92, begin, end, ended=ended)
                for v in self._values(match, "v", "role")
            ),
        ]

    def _values(self, match: re.Match[str], group: str, kind: str) -> list[str]:
        begin, end = match.span(group)
        if kind != "day":
            for span in self._spans:
                if span.offset == begin:
                    begin += len(span.text)
            end = min([s.offset for s in self._spans if begin <= s.offset < end], default=end)
        return values(self._text[begin:end], self._low[begin:end], kind)

    def _say(
        self, subject: str, saying: Saying, match: re.Match[str], begin: int, end: int, *, ended: bool
    ) -> list[Fact]:
        sure = saying.confidence
        if _HEDGED.search(self._low, begin, end):
            sure = round(sure * 0.7, 2)
        if "v" not in saying.pattern.groupindex:
            found = [self._fact(subject, saying.predicate, saying.value, sure, begin, end, ended=ended)]
            if saying.also:
                also = saying.also[1]
                found.append(self._fact(subject, saying.also[0], also, sure, begin, end))
            return found
        predicate = saying.predicate
        if predicate == FAVORITE:
            kind = match["k"]
            predicate += sentences.KINDS_ZH.get(kind, kind)
        return [
            self._fact(subject, predicate, value, sure, begin, end, ended=ended)
            for value in self._values(match, "v", saying.kind)
        ]

    def _fact(
        self, subject: str, predicate: str, value: str, sure: float, begin: int, end: int, *, ended: bool = False
    ) -> Fact:
        said = sentences.chinese(subject, predicate, value, ended=ended, traditional=self._traditional)
        start, stop = self._times(predicate, ended=ended)
        quote = self._text[begin:end].strip()
        return Fact(subject, predicate, value, said, sure, ENDED if ended else ASSERTED, start, stop, quote)

    def _times(self, predicate: str, *, ended: bool) -> tuple[datetime | None, datetime | None]:
        if not self._spans or predicate in ("name", "age", "birthday", "from", "has_relative", "has_friend", "partner"):
            return None, None
        span = self._spans[0]
        if predicate in ("visited", "watched", "read"):
            return span.start, span.end
        if span.relation == "before":
            return None, span.start
        if span.relation == "since":
            return span.start, None
        return (None, span.start if span.granularity == "day" else span.end) if ended else (span.start, None)
