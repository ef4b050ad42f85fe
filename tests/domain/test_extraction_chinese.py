from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from memoryos_server.domain.memory.extraction import Extraction, extract
from memoryos_server.tools.words import Words

FOLD = Words().fold
SAID_AT = datetime(2024, 5, 15, 10, tzinfo=UTC)  # a Wednesday

# Text | the facts it states, `-` before those that ended, `~` before those denied, another subject before a colon.
# Nothing behind the bar: no fact.
CASES = r"""
我叫小明，住在北京，是一名医生 | name=小明; lives_in=北京; has_role=医生
你好，我叫陈晓东，很高兴认识你 | name=陈晓东
我的名字是林雨桐 | name=林雨桐
我的英文名是Kevin | name=Kevin
我叫了外卖 |
我叫他过来 |
我叫什么名字？ |
你叫什么？ |
我不叫小明 |
我今年28岁 | age=28
我二十五岁了 | age=二十五
我今年已经三十岁了 | age=三十
我五岁的时候搬过家 |
我的生日是5月3日 | birthday=5月3日
我生日是1990年7月8号 | birthday=1990年7月8号
我的生日是什么时候 |
我的邮箱是wang@example.org | email=wang@example.org
我的手机号是13800138000 | phone=13800138000
我住在上海 | lives_in=上海
下周三我要去北京出差，住在王府井附近的酒店。 |
我去青岛度假，住在海边 |
我住在希尔顿酒店 |
我住在上海，经常出差 | lives_in=上海
我現在住在臺北 | lives_in=臺北
我们住在成都 | lives_in=成都
我住在一个小房子里 |
我和她住在一起 |
我上周二搬到柏林了 | lives_in=柏林
我去年从武汉搬到了深圳 | lives_in=深圳
我从2019年开始住在杭州 | lives_in=杭州
我在广州生活了十年 | lives_in=广州
我定居在温哥华 | lives_in=温哥华
我以前住在上海 | -lives_in=上海
我曾经住在南京 | -lives_in=南京
我不再住在北京了 | -lives_in=北京
我已经不住在苏州了 | -lives_in=苏州
我不住在北京了 | -lives_in=北京
我搬离了天津 | -lives_in=天津
我可能会搬到东京 |
我也许会搬去大阪 |
如果我住在巴黎就好了 |
要是我住在海边，我会很开心 |
我想象自己住在火星 |
我希望住在海边 |
我要不要搬到柏林？ |
我该不该搬去柏林 |
我住在哪里？ |
我住在北京吗？ |
你住在北京吧？ |
他说我住在北京 |
朋友告诉我他住在纽约 |
她住在纽约 |
他们都觉得我住在郊区 |
“我住在罗马”，她说 |
我从来没住过上海 |
我没有住在上海 | ~lives_in=上海
我不住在上海 | ~lives_in=上海
我差点搬到西安 |
假设我在火星工作 |
我梦见我住在城堡里 |
我来自云南 | from=云南
我是四川人 | from=四川
我是加拿大人 | nationality=加拿大人
我是好人 |
我老家在河南 | from=河南
我的家乡是绍兴 | from=绍兴
我出生在哈尔滨 | from=哈尔滨
我在重庆长大 | from=重庆
我不是四川人 | ~from=四川
我在腾讯工作 | works_at=腾讯
我在一家医院上班 | works_at=一家医院
我在腾讯做产品经理 | works_at=腾讯; has_role=产品经理
我就职于华为 | works_at=华为
我上个月入职了字节跳动 | works_at=字节跳动
我在家工作 |
我在努力工作 |
我离职了 | -works_at=
我从阿里巴巴离职了 | -works_at=阿里巴巴
我不在谷歌工作了 | -works_at=谷歌
我已经不在百度上班了 | -works_at=百度
我以前在京东工作 | -works_at=京东
我被裁员了 | -works_at=
我没有工作 |
我是一名软件工程师 | has_role=软件工程师
我是程序员 | has_role=程序员
我是個設計師 | has_role=設計師
我当老师了 | has_role=老师
我以前是记者 | -has_role=记者
我不再是经理了 | -has_role=经理
我不是医生 | ~has_role=医生
我想当医生 | wants=当医生
我的职业是会计 | has_role=会计
我就读于清华大学 | studies_at=清华大学
我在复旦大学读书 | studies_at=复旦大学
我考上了浙江大学 | studies_at=浙江大学
我学的是机械工程专业 | studies=机械工程
我的专业是历史 | studies=历史
我结婚了 | relationship_status=结婚
我单身 | relationship_status=单身
我离婚了 | relationship_status=离婚
我还没结婚 | relationship_status=未婚
我和女朋友分手了 | -partner=; relationship_status=单身
我老婆叫王芳 | partner=老婆王芳
我姐姐叫李娜，住在上海 | has_relative=姐姐李娜; 姐姐李娜:lives_in=上海
我妈妈是一名老师 | 妈妈:has_role=老师
我弟弟在美团工作 | 弟弟:works_at=美团
我爸爸对花粉过敏 | 爸爸:allergic_to=花粉
我的朋友叫赵强 | has_friend=朋友赵强
我妹妹不喜欢香菜 | 妹妹:dislikes=香菜
我妹妹可能会搬到杭州 |
我有两个孩子 | has_child=两个孩子
我有一个女儿 | has_child=一个女儿
我有三个哥哥 | has_relative=三个哥哥
我没有孩子 |
我养了一只猫 | has_pet=一只猫
我养了一只叫豆豆的猫 | has_pet=一只叫豆豆的猫
我領養了一隻狗 | has_pet=一隻狗
我养狗 | has_pet=狗
我的狗叫旺财 | has_pet=狗旺财
我妹妹的名字叫小红 | has_relative=妹妹小红
我开一辆丰田 | owns=辆丰田
我開著一輛豐田 | owns=輛豐田
我开会 |
我开了一家店 |
我朋友开一辆丰田 | 朋友:owns=辆丰田
我没有养猫 | ~has_pet=猫
我想养一只猫 |
我的狗叫旺财 | has_pet=狗旺财
我的猫上周去世了 | -has_pet=猫
我对花生过敏 | allergic_to=花生
我對海鮮、牛奶過敏 | allergic_to=海鮮; allergic_to=牛奶
我对这个不过敏 |
我乳糖不耐受 | allergic_to=乳糖
我海鲜过敏 | allergic_to=海鲜
我有糖尿病 | condition=糖尿病
我患有哮喘 | condition=哮喘
我没有高血压 | ~condition=高血压
我是素食主义者 | diet=素食主义者
我现在吃素 | diet=素
我的性格比较内向 | trait=内向
我很外向 | trait=外向
我喜欢咖啡 | likes=咖啡
我喜欢爬山、游泳和摄影 | likes=爬山; likes=游泳; likes=摄影
我特别喜欢吃火锅 | likes=吃火锅
我愛吃辣 | likes=吃辣
我喜歡爵士樂 | likes=爵士樂
我对历史很感兴趣 | likes=历史
我不喜欢香菜 | dislikes=香菜
我不太喜欢恐怖片 | dislikes=恐怖片
我讨厌下雨天 | dislikes=下雨天
我受不了噪音 | dislikes=噪音
我對足球不感興趣 | dislikes=足球
我不吃猪肉 | avoids=猪肉
我不喝酒 | avoids=酒
我不再喜欢咖啡了 | -likes=咖啡
我以前喜欢打篮球 | -likes=打篮球
我已经不喜欢打游戏了 | -likes=打游戏
我喜欢你 |
我喜欢这个 |
我喜欢它 |
你喜欢什么音乐？ |
我喜欢什么？ |
你喜欢咖啡吗 |
谁不喜欢咖啡呢 |
我可能喜欢咖啡 |
我喜欢咖啡。开玩笑的。 |
我最喜欢的颜色是蓝色 | favorite_color=蓝色
我最喜欢的食物是拉面 | favorite_food=拉面
我最喜歡的電影是教父 | favorite_movie=教父
我的爱好是书法和围棋 | hobby=书法; hobby=围棋
我会说英语和法语 | speaks=英语; speaks=法语
我的母语是粤语 | speaks=粤语
我不会说日语 | ~speaks=日语
我会弹钢琴 | skill=弹钢琴
我擅长数据分析 | skill=数据分析
我在学吉他 | learning=吉他
最近我在学习烹饪 | learning=烹饪
我在学校 |
我用 React 19 + TypeScript,後端是 Go | uses=React 19 + TypeScript; uses=Go
使用者使用 Python 3.12,偏好 async 模式 | uses=Python 3.12; likes=async 模式
我们的数据库是PostgreSQL | uses=PostgreSQL
我把编辑器从Vim换成了VSCode | -uses=Vim; uses=VSCode
我把iPhone换成了Pixel 8 | -uses=iPhone; uses=Pixel 8
我不再用Windows了 | -uses=Windows
我不用Windows | ~uses=Windows
我用手吃饭 |
我买了一辆特斯拉 | owns=辆特斯拉
我把车卖了 | -owns=车
我没买车 |
我去过冰岛 | visited=冰岛
我去年去了云南旅游 | visited=云南
我没去过日本 |
我从来没去过日本 |
我去了超市 |
我打算明年去日本旅游 | plans=去日本旅游
我决定学习法语 | plans=学习法语
我不打算去日本 | ~plans=去日本
我想去冰岛看极光 | wants=去冰岛看极光
我正在读《三体》 | read=《三体》
我昨天看了《霸王别姬》 | watched=《霸王别姬》
记住：我对海鲜过敏 | allergic_to=海鲜
我戒烟了 | -hobby=烟
我觉得我喜欢爵士乐 | likes=爵士乐
小说里的我住在长安 |
翻译一下这句话：我住在北京 |
请把下面的话翻译成英文：我喜欢猫 |
比如我喜欢猫 |
谢谢你的建议 |
今天天气不错 |
好的，我明白了 |
大家都住在北京 |
用户喜欢简洁的代码 | likes=简洁的代码
我其实是素食者，不吃肉 | diet=素食者; avoids=肉
更正一下，我住在宁波 | lives_in=宁波
我上週搬到高雄，現在在台積電當工程師 | lives_in=高雄; works_at=台積電; has_role=工程師
我不住上海，我住杭州 | ~lives_in=上海; lives_in=杭州
我跟你说，我现在在小米上班 | works_at=小米
我没说我住在北京 |
我不是不喜欢咖啡 |
我原本打算去日本，但是取消了 |
我以为我对花生过敏 |
我住院了 |
我女儿今年五岁，喜欢画画 | 女儿:age=五; 女儿:likes=画画
我曾经是个老师，现在是程序员 | -has_role=老师; has_role=程序员
我从不喝咖啡 | avoids=咖啡
我刚从北京搬到上海 | lives_in=上海
"""


def read(text: str, *, speaker: str = "", role: str = "user") -> Extraction:
    return extract(text, speaker=speaker, role=role, said_at=SAID_AT, fold=FOLD)


def brief(said: Extraction) -> list[str]:
    return [
        f"{'~' if f.denied else '-' if f.ended else ''}{'' if f.subject == 'user' else f.subject + ':'}{f.predicate}={f.value}"
        for f in said.facts
    ]


@pytest.mark.parametrize("case", [line for line in CASES.splitlines() if line])
def test_extract_when_a_sentence_is_said_then_exactly_its_facts(case: str) -> None:
    text, _, expected = case.rpartition("|")
    assert brief(read(text.strip())) == [fact.strip() for fact in expected.split(";") if fact.strip()]


def test_extract_when_a_move_is_dated_then_it_holds_from_that_day() -> None:
    (fact,) = read("我上周二搬到柏林了").facts
    assert (fact.valid_from, fact.valid_to) == (datetime(2024, 5, 7, tzinfo=UTC), None)
    assert (fact.sentence, fact.single, fact.group) == ("住在柏林", True, "profile")


@pytest.mark.parametrize(
    ("simplified", "traditional"),
    [
        ("我喜欢喝茶", "我喜歡喝茶"),
        ("我对坚果过敏", "我對堅果過敏"),
        ("我不再用Windows了", "我不再用Windows了"),
        ("我从2019年开始住在台北", "我從2019年開始住在台北"),
        ("如果我住在东京", "如果我住在東京"),
        ("我会说法语", "我會說法語"),
    ],
)
def test_extract_when_the_script_differs_then_the_facts_are_the_same(simplified: str, traditional: str) -> None:
    one, other = read(simplified).facts, read(traditional).facts
    assert [(f.predicate, FOLD(f.value), f.polarity, f.valid_from) for f in one] == [
        (f.predicate, FOLD(f.value), f.polarity, f.valid_from) for f in other
    ]


def test_extract_when_the_text_is_traditional_then_so_is_the_sentence() -> None:
    assert [f.sentence for f in read("我喜歡爵士樂").facts] == ["喜歡爵士樂"]


def test_extract_when_an_assistant_speaks_then_nothing() -> None:
    assert read("我住在北京。请用中文回复。", role="assistant") == Extraction()


@pytest.mark.parametrize(
    "piece", ["我喜欢喝茶。", "我住在北京，", "我用a、b和c、", "用户 ", "「", "我的", "对", "《", "来自"]
)
def test_extract_when_the_text_is_long_then_time_is_linear(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    start = time.process_time()
    read(text)
    assert time.process_time() - start < 3
