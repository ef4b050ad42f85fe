"""Instructions to the assistant that are meant to last."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from memoryos_server.domain.memory.extraction.model import Rule
from memoryos_server.domain.memory.extraction.text import Sentence, lower, masked

_NEXT_IMPORTANCE = 0.75

LONGEST = 240
"""A longer sentence is a task, not a rule, in characters."""

_POLITE = (
    r"(?:(?:please|also|and|so|from now on|in (?:the )?future|going forward|remember to|remember that|"
    r"remember|ok|hey|hi|i want you to|i need you to|i'd like you to|can you|could you|you should|"
    r"you must|make sure to|make sure you|be sure to|when (?:you )?(?:reply|answer|respond|write code|"
    r"writing code)[\w ]{0,20}),? ?)*"
)
_VERB = (
    r"(?:answer|reply|respond|speak|write|use|call|address|format|keep|be|avoid|include|add|show|give|"
    r"explain|translate|start|end|cite|stick|prefer|refer|tell|ask|provide|summarize|return|put|say|"
    r"mention|omit|skip|limit)"
)
_ENGLISH = (
    (re.compile(rf"{_POLITE}(?:always|never) {_VERB}\b.+"), 0.9),
    (
        re.compile(
            rf"{_POLITE}(?:from now on|in (?:the )?future|going forward),? (?:please )?(?:always |never |"
            rf"don't |do not )?{_VERB}\b.+"
        ),
        0.9,
    ),
    (
        re.compile(
            rf"{_POLITE}(?:don't|do not|stop) (?:ever )?(?:using|use|answering|answer|replying|reply|calling|"
            r"call|include|including|add|adding|write|writing|apologize|apologizing|give|giving|explain|"
            r"mention|suggest|speak)\b.+"
        ),
        0.8,
    ),
    (
        re.compile(
            rf"{_POLITE}(?:answer|reply|respond|speak|write)(?: to me| back)?(?: only)? in (?:traditional |"
            r"simplified )?(?:english|chinese|mandarin|french|german|spanish|italian|japanese|korean|"
            r"portuguese|russian|bullet points|markdown|plain text|json|short sentences)\b.*"
        ),
        0.85,
    ),
    (
        re.compile(
            rf"{_POLITE}(?:keep|make) (?:your|all|the) (?:answers|replies|responses|answer|explanations|code)\b.+"
        ),
        0.8,
    ),
    (
        re.compile(
            r"(?:i (?:prefer|want|like)|the user prefers|user prefers) (?:your )?(?:short|concise|brief|"
            r"detailed|long|bulleted|step-by-step|direct|terse) (?:answers|replies|responses|explanations)\b.*"
        ),
        0.8,
    ),
    (
        re.compile(
            rf"{_POLITE}use (?:only )?(?:(?:metric|imperial|si) units|celsius|fahrenheit|(?:british|american) (?:english|spelling)|"
            r"24-hour (?:time|clock)|bullet points|plain (?:text|language)|simple (?:words|language))\b.{0,30}"
        ),
        0.8,
    ),
    (re.compile(r"(?:please )?call me (?!back|when|if|later|at|on|tomorrow|a |an |crazy).+"), 0.8),
)
_NEXT = re.compile(
    rf"{_POLITE}(?:use|avoid|keep|stick to|prefer|cite|be|include|format|omit|skip|limit|answer|reply|respond|speak)\b.{{3,50}}"
)
"""Right behind an instruction, a short one more: Don't use emojis. Keep it short."""
_ZH_POLITE = (
    r"(?:请|麻烦|拜托|希望你|我希望你|我要你|你要|你需要|记得|记住|务必|以后|今后|从现在开始|"
    r"从现在起|往后|之后|都|也|,|，|:|：| )*"
)
_CHINESE = (
    (
        re.compile(
            rf"{_ZH_POLITE}(?:永远|始终|总是|一律|每次都?)(?:要|不要|别|用|使用|以|先|回复|回答|给|保持|称呼|叫).+"
        ),
        0.9,
    ),
    (
        re.compile(
            r"(?:请|麻烦|拜托|以后|今后|从现在开始|从现在起|往后|记得|记住|务必|,|，| )+(?:都|请|你|"
            r"也|,|，| )*(?:永远|始终|总是|一律|每次|都)?(?:要|只)?(?:用|使用|"
            r"以)[^,，。]{1,20}?(?:回复|回答|答复|回应|交流|沟通|对话|撰写|写|作答|说明|解释|"
            r"输出).*"
        ),
        0.9,
    ),
    (
        re.compile(
            r"用(?:繁体中文|简体中文|中文|英文|英语|日文|日语|韩文|法文|德文|markdown|表格|列表|"
            r"口语)[^,，。]{0,6}?(?:回复|回答|答复|回应|交流|沟通|对话|作答|输出).*"
        ),
        0.85,
    ),
    (
        re.compile(
            r"(?:请|麻烦|拜托|以后|今后|从现在开始|从现在起|往后|回复时|回答时|写代码时|,|，| )+(?:你|"
            r"都|请|也|,|，| )*(?:不要|别|不准|不许|禁止|勿)(?:再)?(?:使用|用|加|写|给|叫|"
            r"称呼|提|说|回复|回答|输出|附上|出现|道歉|解释).+"
        ),
        0.85,
    ),
    (
        re.compile(
            r"(?:不要|别)(?:再)?(?:使用|用|加|附上)(?:表情|emoji|敬语|客套|缩写|英文|繁体|简体|markdown|注释).*"
        ),
        0.8,
    ),
    (re.compile(r"(?:请|以后|今后|从现在开始|从现在起|,|，| )*(?:你)?(?:可以|就|都)?(?:叫|称呼)我.{1,12}"), 0.8),
    (
        re.compile(
            r"(?:请|以后|今后|记得|务必|,|，| )+(?:回复|回答|答案|解释|代码)(?:要|请|尽量|时|必须|应该|保持|需要).+"
        ),
        0.85,
    ),
    (re.compile(r"(?:回复|回答|答案)(?:请|要|尽量|必须|保持)(?:简洁|简短|详细|用|使用|精简|直接).*"), 0.85),
    (re.compile(r"(?:使用者|用户)(?:偏好|希望|要求|喜欢)[^,，。]{0,16}(?:回复|回答|回应|答复|沟通).*"), 0.85),
)
_LEAD = re.compile(r"(?:[-*•·]\s+|\d+[.)、]\s*|[\s,，:：\"'“「])+")
_NOW_ONLY = re.compile(
    r"\b(?:this (?:text|email|sentence|paragraph|function|"
    r"code|question|time)|the following|below|above)\b|这段|这句|"
    r"这个(?:文件|函数|问题)|下面|以下|上面|这次"
)


def find(text: str, fold: Callable[[str], str]) -> Iterator[Rule]:
    """The instructions in a text, in its order."""
    plain = masked(text)
    low = lower(plain)
    told = False
    for sentence in Sentence.split(low):
        begin, follows, told = sentence.begin, told, False
        if sentence.asks or sentence.end - begin > LONGEST:
            continue
        if lead := _LEAD.match(low, begin, sentence.end):
            begin = lead.end()
        said = text[begin : sentence.end].strip()
        folded = lower(fold(said))
        if not folded or _NOW_ONLY.search(folded):
            continue
        chinese = any("\u4e00" <= c <= "\u9fff" for c in folded)
        for pattern, importance in _CHINESE if chinese else _ENGLISH:
            if pattern.match(folded):
                told = True
                yield Rule(said, importance)
                break
        if not told and follows and not chinese and _NEXT.fullmatch(folded):
            told = True
            yield Rule(said, _NEXT_IMPORTANCE)
