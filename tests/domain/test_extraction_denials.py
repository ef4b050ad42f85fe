"""What a plain denial denies, and what only looks like one."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from memoryos_server.domain.memory.extraction import extract, extract_memories
from memoryos_server.tools.words import Words

FOLD = Words().fold
SAID_AT = datetime(2024, 5, 15, 10, tzinfo=UTC)  # a Wednesday

# Text | what it denies, another subject before a colon; facts that it states besides are left out.
DENIALS = r"""
I'm not allergic to walnuts | allergic_to=walnuts
I'm not allergic to walnuts after all | allergic_to=walnuts
It turns out I'm not allergic to crab or milk | allergic_to=crab; allergic_to=milk
I am not allergic to penicillin, by the way | allergic_to=penicillin
I don't have a peanut allergy | allergic_to=peanut
I'm not lactose intolerant | allergic_to=lactose
I don't work at Initech | works_at=Initech
I do not work for Bosch | works_at=Bosch
I’m not working at Initech | works_at=Initech
I don't live in Genoa | lives_in=Genoa
Actually, we don't live in Genoa either | lives_in=Genoa
I'm not based in Accra | lives_in=Accra
I'm not from Norway | from=Norway
I'm not Dutch, I'm Belgian | nationality=Dutch
I'm not a plumber | has_role=a plumber
I don't study chemistry | studies=chemistry
I'm not engaged | relationship_status=engaged
I'm not married to Pavel | partner=Pavel
I'm not vegetarian | diet=vegetarian
I'm not shy | trait=shy
I don't have a parrot | has_pet=parrot
I have no cat | has_pet=cat
I haven't got a hamster | has_pet=hamster
I don't own a boat | owns=boat
I don't have asthma | condition=asthma
I don't speak Danish or Finnish | speaks=Danish; speaks=Finnish
I don't play golf | hobby=golf
I don't use Emacs | uses=Emacs
I'm not learning Welsh at the moment | learning=Welsh
I'm not planning to visit Chile | plans=visit Chile
I don't want to be a pilot | wants=be a pilot
My aunt doesn't live in Leeds | aunt:lives_in=Leeds
My cousin isn't allergic to cats | cousin:allergic_to=cats
I don't drink cocoa anymore | likes=cocoa; uses=cocoa
I no longer eat cheese | likes=cheese; uses=cheese
我对核桃不过敏 | allergic_to=核桃
我对芝麻并不过敏 | allergic_to=芝麻
其实我对牛奶没有过敏 | allergic_to=牛奶
我对虾不再过敏了 | allergic_to=虾
我不对芒果过敏 | allergic_to=芒果
我没有花粉过敏 | allergic_to=花粉
我對鳳梨不過敏 | allergic_to=鳳梨
我不住在大连 | lives_in=大连
我不住大连 | lives_in=大连
我没有住在厦门 | lives_in=厦门
我不是住在米兰 | lives_in=米兰
我不住在臺南，我住在高雄 | lives_in=臺南
我不在华为工作 | works_at=华为
我没在美团上班 | works_at=美团
我不是在谷歌工作 | works_at=谷歌
我并不在京东工作 | works_at=京东
我不是律师 | has_role=律师
我不是湖南人 | from=湖南
我不是韩国人 | nationality=韩国人
我不在复旦大学读书 | studies_at=复旦大学
我不是单身 | relationship_status=单身
我不是素食者 | diet=素食者
我不吃素 | diet=素
我不内向 | trait=内向
我没有猫 | has_pet=猫
我没养狗 | has_pet=狗
我沒有養兔子 | has_pet=兔子
我没有哮喘 | condition=哮喘
我不会说韩语 | speaks=韩语
我不擅长下棋 | skill=下棋
我不用Windows | uses=Windows
我不打算去冰岛 | plans=去冰岛
我姐姐不住在苏州 | 姐姐:lives_in=苏州
我妹妹对花粉不过敏 | 妹妹:allergic_to=花粉
我不喝咖啡了 | likes=咖啡; likes=喝咖啡; uses=咖啡
我已经不喝红茶了 | likes=红茶; likes=喝红茶; uses=红茶
"""

# Not plain: asked, supposed, reported, hedged, in part, now and then, of the past, or the reason is what is denied.
NOTHING = r"""
I don't just work at Initech
I'm not only a plumber
I'm not just allergic to walnuts
I don't only speak Danish
I'm not always vegan
I'm not entirely vegetarian
I'm not exactly married
I'm not really vegan
I'm not severely allergic to walnuts
I'm not a bit shy
I'm not not allergic to walnuts
I don't think I'm allergic to walnuts
I don't believe I live in Genoa
I think I'm not allergic to walnuts
I'm not sure I live in Genoa
I might not live in Genoa
Maybe I don't live in Genoa
I wouldn't live in Genoa
I can't live in Genoa
I didn't live in Genoa
I have never lived in Genoa
I've never been to Chile
I don't live in Genoa all year
I don't live in Genoa because I like the sea
I don't work at Initech on Fridays
Today I'm not working at Initech
I usually don't work at Initech
I don't usually drink cocoa anymore
I don't live in Genoa but near it
I don't speak Danish and Finnish
I don't work at Initech so much as for Initech
I don't live in Genoa, do I?
I don't live in Genoa?
Why don't I live in Genoa?
If I don't live in Genoa, I pay less
When I'm not working at Initech I sleep
It's not that I don't live in Genoa
I hate that I don't have a parrot
She said that I don't live in Genoa
My boss thinks I don't work at Initech
I told him I'm not vegan
"I don't live in Genoa," he said
I don't live in Genoa. Just kidding.
You don't live in Genoa
I'm not allergic to anything
I'm not Bob
I'm not 34
I don't have time
我不只在华为工作
我不仅是律师
我不仅住在大连
我不光会说韩语
我不是不住在大连
我不是很内向
我不太内向
我不完全是素食者
我不总是吃素
我不一定住在大连
我平时不住在大连
我有时候不在华为工作
我周末不在华为工作
我今天不在华为工作
我可能不住在大连
我觉得我对核桃不过敏
他说我不住在大连
听说我不住在大连
谁说我不住在大连
如果我不住在大连
我不住在大连吗
难道我不住在大连
是不是我不住在大连
我从来没住过大连
我以前不住在大连
我没去过冰岛
我没买车
我不能说韩语
我不会说法语和德语
我不知道我住在大连
我没说我住在大连
我对这个不过敏
我不叫小明
你不住在大连
"""


def denied(text: str, role: str = "user") -> list[str]:
    said = extract(text, speaker="", role=role, said_at=SAID_AT, fold=FOLD)
    assert all(fact.ended and 0.7 <= fact.confidence < 1 for fact in said.facts if fact.denied)
    return [f"{'' if f.subject == 'user' else f.subject + ':'}{f.predicate}={f.value}" for f in said.facts if f.denied]


@pytest.mark.parametrize("case", DENIALS.strip().splitlines())
def test_extract_when_plainly_denied_then_exactly_that_is_denied(case: str) -> None:
    text, _, expected = case.partition(" | ")
    assert denied(text) == expected.split("; ")
    assert denied(text, "assistant") == []


@pytest.mark.parametrize("text", NOTHING.strip().splitlines())
def test_extract_when_not_plainly_denied_then_nothing_is_denied(text: str) -> None:
    assert denied(text) == []


@pytest.mark.parametrize("case", DENIALS.strip().splitlines())
def test_extract_memories_when_denied_then_no_memory_says_what_is_denied(case: str) -> None:
    text, _, expected = case.partition(" | ")
    found = extract_memories([("user", text)], said_at=SAID_AT, fold=FOLD)
    values = [fact.partition("=")[2] for fact in expected.split("; ")]
    assert not any(value in memory.content for memory in found for value in values)


def test_extract_when_over_and_denied_then_both_are_told_apart() -> None:
    over, no = (
        extract(text, speaker="", role="user", said_at=SAID_AT, fold=FOLD).facts[0]
        for text in ("I no longer live in Genoa", "I don't live in Genoa")
    )
    assert (over.ended, over.denied) == (True, False)
    assert (no.ended, no.denied) == (True, True)


@pytest.mark.parametrize(
    "piece", ["I don't live in Genoa. ", "I don't drink tea anymore, ", "我不住在大连。", "我不喝茶了，"]
)
def test_extract_when_the_text_is_long_then_time_is_linear(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    start = time.process_time()
    denied(text)
    assert time.process_time() - start < 6
