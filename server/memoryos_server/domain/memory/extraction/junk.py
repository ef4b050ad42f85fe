"""Which turns say nothing worth keeping as knowledge.

A turn is junk if nothing is left of it once courtesies are taken away: greetings, thanks, "ok", laughter. So a greeting with
content is not junk. A whole turn counts, not a sentence of it: junk turns stay findable, they only never become a fact.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 160
"""A longer turn is no courtesy, in characters."""

_GREETING = """
hi|hiya|hello|hey|heya|yo|howdy|greetings|good (?:morning|afternoon|evening|day)|morning|evening|hi there|
hello there|
hey there|what'?s up|sup|how are you(?: doing)?(?: today)?|how'?s it going|how do you do|how have you been|
(?:it'?s )?(?:nice|good|great|lovely) to (?:meet|see|hear from) you(?: too| again)?|long time no see|
welcome back|
anyone there|are you there|
你好|您好|你们好|大家好|哈喽|哈罗|嗨|嘿|早上好|上午好|中午好|下午好|晚上好|早安|早啊|早|在吗|在么|有人吗|
你在吗|
很高兴认识你|很高兴见到你|好久不见|最近怎么样|你好吗|您好吗|吃了吗|久仰
"""
_FAREWELL = """
bye|bye bye|goodbye|good bye|good night|night|see you|see ya|see you (?:later|soon|tomorrow|then|around|
next time)|
talk (?:to you )?(?:later|soon|tomorrow)|take care|catch you later|later|cya|ttyl|have a (?:good|great|nice|
lovely) (?:day|one|night|evening|weekend)|
until next time|gotta go|got to go|gtg|i have to go(?: now)?|farewell|cheers|sweet dreams|
再见|拜拜|拜|晚安|回头见|回聊|下次见|下次聊|下次再聊|我们下次再聊|改天聊|明天见|明天聊|明天再聊|我们明天再聊|
先这样|先到这里|今天先到这里|
就到这里|今天就到这里|那就这样|保重|我先走了|我走了|祝你愉快|祝你好运|今天的聊天(?:就到这里|结束)
"""
_THANKS = """
thanks|thank you|thanks so much|thanks a lot|thanks again|thank you (?:so|very) much|thanks a million|
many thanks|much appreciated|thx|ty|tysm|cheers|
i (?:really )?appreciate (?:it|that|you)|thanks for (?:that|the help|your help|the advice|everything|asking|
sharing|listening|the tip|the info)|
thank you for (?:that|the help|your help|the advice|your advice|everything|asking|sharing|listening|
your support)|
you'?re (?:very |most |so )?welcome|no problem|np|no worries|don'?t mention it|my pleasure|anytime|any time|
glad (?:to help|i could help)|happy to help|
谢谢|谢谢你|谢谢您|多谢|谢了|谢啦|谢谢啦|感谢|非常感谢|十分感谢|感谢你|太感谢了|谢谢你的(?:帮助|建议|分享|
回答|支持|夸奖|鼓励|理解|陪伴|关心)|感谢你的(?:帮助|建议|分享|回答|支持|陪伴|关心)|
不客气|不用谢|不谢|没关系|没事|不必客气|客气了|别客气|辛苦了|麻烦你了
"""
_ACKNOWLEDGEMENT = """
ok|okay|k|kk|okey|yes|yep|yup|yeah|yea|ya|no|nope|nah|sure|sure thing|of course|right|that'?s right|
you'?re right|exactly|absolutely|definitely|indeed|
totally|true|very true|so true|agreed|i agree|fine|all right|alright|alrighty|got it|gotcha|i see|
i understand|understood|makes sense|that makes sense|sounds good|
sounds great|sounds like a plan|good|great|nice|cool|awesome|perfect|excellent|wonderful|amazing|fantastic|
lovely|wow|whoa|oh|ah|aha|oh wow|oh no|oh my god|omg|really|
interesting|good point|good idea|great idea|fair enough|well said|noted|will do|roger|done|deal|congrats|
congratulations|good luck|i know|i guess(?: so)?|me too|same here|same|
lol|lmao|rofl|haha|hehe|hahaha|xd|
that'?s (?:so |really |very |pretty )?(?:good|great|nice|cool|awesome|amazing|wonderful|interesting|fantastic|
lovely|true|fine|ok|okay|perfect|funny|hilarious)(?: to (?:hear|know))?|
(?:so|very|really|pretty) (?:good|great|nice|cool|true|interesting|funny)|
好|好的|好吧|好呀|好啊|好嘞|好滴|行|行吧|可以|可以的|没问题|嗯|嗯嗯|恩|哦|噢|喔|啊|哇|是|是的|是啊|是呀|对|
对的|对啊|对呀|没错|的确|确实|确实如此|当然|
明白|明白了|我明白了|懂了|知道了|我知道了|了解|收到|原来如此|原来是这样|这样啊|真的吗|真的|真的啊|真棒|太棒了|
太好了|很好|不错|挺好的|挺不错的|厉害|好厉害|有道理|你说得对|你说的对|说得对|我同意|同意|
我也是|我也这么觉得|我也这么认为|哈哈|哈哈哈|呵呵|嘿嘿|嘻嘻|笑死|赞|加油|没有了|没有|没了|不是|不|不用了|算了|
随便|都行|都可以|听起来不错|听起来很棒|好主意|好建议|恭喜|恭喜你|祝贺你
"""
_FILLER = """
um+|uh+|er+m*|hmm+|hm|mm+|well|so|anyway|you know|let me see|let me think|one (?:moment|sec|second|minute)|
wait|hold on|just a (?:moment|sec|second|minute)|brb|test|testing|
please|go on|continue|go ahead|next|more|again|sorry|my bad|oops|excuse me|pardon|never ?mind|nothing|
nothing much|not much|idk|i don'?t know|whatever|
那个|这个|额|呃|唔|呃呃|让我想想|我想想|等一下|等等|稍等|请稍等|请继续|继续|继续说|测试|对不起|抱歉|不好意思|
没什么|不知道|我不知道|无所谓|嗯哼
"""
_ADDRESS = """
friend|my friend|buddy|pal|dude|man|bro|mate|dear|everyone|all|guys|folks|there|assistant|bot|claude|chatgpt|
gpt|siri|ai|too|again|then|now|so much|a lot|very much|
朋友|我的朋友|老朋友|亲爱的|亲|助手|ai|ai助手|ai伴侣|小助手|老师|兄弟|哥们|姐妹|各位|大家|啊|呀|哦|吧|啦|呢|
哈|嘛|了|的|那|也
"""

_KINDS = (
    ("thanks", _THANKS),
    ("farewell", _FAREWELL),
    ("greeting", _GREETING),
    ("acknowledgement", _ACKNOWLEDGEMENT),
    ("filler", _FILLER),
)


def _whole(words: str) -> re.Pattern[str]:
    return re.compile("(?:" + "|".join(w for w in words.replace("\n", "").split("|") if w) + ")")


_PATTERNS = tuple((kind, _whole(words)) for kind, words in _KINDS)
_ADDRESSES = _whole(_ADDRESS)
_PIECE = re.compile(r"[,.!?;:~…，。！？；：、～·—()（）\"“”\n]+")
_WORDS = re.compile(r"[a-z']+")
_LAUGH = re.compile(
    r"(?:ha){2,}h?|(?:he){2,}|(?:lo)+l+|[哈呵嘿嘻]{2,}|[嗯恩]+|"
    r"[哦噢喔]+|[啊哇]+|6{3,}|2333+|y+a+y+|aw+|wow+|ye+s+|no+o+|"
    r"so+|woo+(?:hoo+)?|o+h+|a+h+|hm+|mhm+|x+d+"
)
_BOILERPLATE = re.compile(
    r"\b(?:as|i am|i'm|being) (?:just )?an? (?:ai|artificial intelligence|(?:large )?language model|"
    r"virtual assistant|ai assistant)\b"
    r"|作为(?:一个|一名|一款)?(?:ai|人工智能|大?语言模型|虚拟助手)|我(?:只)?是一个?(?:ai|人工智能|大?语言模型)"
)
_BLOCK = re.compile(r"</?\s*memoryos-context\s*>", re.IGNORECASE)
_TAG = "memoryos-context"
_SIMPLE = str.maketrans(
    "謝見聽說對沒嗎麼興識問題確實當瞭這樣氣關係煩來個個們點講罷時間動賀樂過還裡為從給讓請測試續繼",
    "谢见听说对没吗么兴识问题确实当了这样气关系烦来个个们点讲罢时间动贺乐过还里为从给让请测试续继",
)
_NAME = re.compile(r"[A-Z][a-z]+")


def without_memory(text: str) -> str:
    """The text without blocks of injected memory that somebody echoed; one that never closes goes to the end."""
    if _TAG not in text.casefold():
        return text
    kept: list[str] = []
    at, depth = 0, 0
    for mark in _BLOCK.finditer(text):
        closes = mark[0].startswith("</")
        if depth == 0:
            kept.append(text[at : mark.start()])
        depth = max(0, depth - 1) if closes else 1
        at = mark.end()
    if depth == 0:
        kept.append(text[at:])
    return " ".join(piece for piece in kept if piece)


def judge(text: str, role: str) -> str:
    """Why a turn is junk, or "".

    The reasons: `empty` (no letter or digit), `echo` (nothing but injected memory), `boilerplate` (an assistant speaks
    of being one), `greeting`, `farewell`, `thanks`, `acknowledgement`, `filler`.

    Args:
        text: What was said.
        role: `user`, `assistant` or `system`.
    """
    rest = without_memory(text)
    if not any(map(_says, rest)):
        return "echo" if any(map(_says, text)) else "empty"
    if role == "assistant" and len(rest) <= 3 * LONGEST and _BOILERPLATE.search(rest.casefold()):
        return "boilerplate"
    if len(rest) > LONGEST:
        return ""
    return _courtesy(rest)


def _says(char: str) -> bool:
    """A letter or digit of any script; signs, emoji and blanks say nothing."""
    return unicodedata.category(char)[0] in "LN"


def _courtesy(text: str) -> str:
    """The first kind of courtesy that a text consists of, or "" if it has anything else."""
    plain = unicodedata.normalize("NFKC", text).replace("’", "'").translate(_SIMPLE)
    if re.search(r"\d", re.sub(r"6{3,}|2333+", "", plain)):
        return ""
    reason, addressed = "", False
    # Runs of English words are looked at as a whole: "good morning" is one courtesy, not two words.
    for run in _PIECE.split(plain):
        run = "".join(c if _says(c) or c in " '" else " " for c in run).strip()
        if not run:
            continue
        kind = _run(run, addressed=addressed)
        if kind is None:
            return ""
        reason = reason or kind
        # "No, Tokyo" is an answer; "Thanks, Mel" and "That's great, Mel" address somebody.
        addressed = addressed or kind in ("greeting", "thanks", "farewell") or (bool(kind) and " " in run)
    return reason


def _run(run: str, *, addressed: bool) -> str | None:
    """The kind of a run between two signs; "" for an address or a name, None if it says anything."""
    lower = re.sub(r"\s+", " ", run.casefold()).strip()
    kind = ""
    named = False
    while lower:
        best, best_end = "", 0
        for name, pattern in (*_PATTERNS, ("", _ADDRESSES), ("acknowledgement", _LAUGH)):
            end = _longest(pattern, lower)
            if end > best_end:
                best, best_end = name, end
        if best_end:
            kind = kind or best
            lower = lower[best_end:].strip()
            continue
        word = _WORDS.match(lower)
        # A name after a courtesy, such as "Thanks, Mel!" or "Hi Jon", and nothing else.
        name = run.split()[-len(lower.split())] if word and len(lower.split()) <= len(run.split()) else ""
        if word and not named and _NAME.fullmatch(name) and (addressed or kind in ("greeting", "thanks", "farewell")):
            named = True
            lower = lower[word.end() :].strip()
            continue
        return None
    return kind


def _longest(pattern: re.Pattern[str], text: str) -> int:
    """How much of the text's beginning the pattern takes, at a word's end; 0 for nothing."""
    # Alternatives are tried in order, the first that fits wins: so let it try every end, the longest first.
    ends = [match.end() for match in re.finditer(r"(?<=[a-z'])(?![a-z'])|(?<=[^\x00-\x7f])|$", text)]
    for end in reversed([e for e in ends if e <= 48]):
        if pattern.fullmatch(text, 0, end):
            return end
    return 0
