"""What may be the value of a fact in Chinese."""

from __future__ import annotations

import re

LISTED = frozenset({"list", "tool"})
MOST = 16
"""The longest value, in characters; words and numbers of other scripts count as two."""

_BETWEEN = re.compile(r"、|和(?!平|服|弦|声|解|睦)|以及|还有|跟(?=.)|与(?!众)|及(?!时|格)|(?<=[\w+]) *& *(?=\w)")
_WRAP = " \t,，。.!！~～:：;；、\"'“”「」『』…"
_LAST = re.compile(r"(?:这种|这类|这样的|之类的?|什么的|等等?|了|啦|呢|吧|啊|呀|哦|哈|嘛|的|着|来着|一下)$")
_BAD = re.compile(
    r"你|您|我|(?<!吉)他(?!命|国)|她|它|咱|自己|什么|怎么|哪|谁|这(?!里)|那(?!不勒斯|"
    r"霸|里)|这里|那里|时候|吗|不(?!丹|锈|列颠)|没|如果|因为|所以|但是|可是|觉得|"
    r"一样|的话|为什么|是否|多少|希望|可能"
)
_BAD_WHOLE = re.compile(
    r"(?:一下|一些|一点|一起|东西|事情|时间|时候|感觉|生活|工作|学习|人|地方|家|家里|外面|外地|"
    r"国外|国内|这里|那里|上面|下面|里面|说话|聊天|方式|"
    r"问题|话题|建议|方法|情况|到|去|来|上|下|过|会|要|有|是|的|得|了|做|看|听|吃|喝|玩|说|"
    r"想|给|用|一直|非常|很|太|新的|好的|努力|认真|一种.*|.*的感觉|.*的过程|"
    r"公司|学校|公园|医院|超市|海边|山上|健身房|图书馆|电影院|餐厅|博物馆|一家.{0,2}餐厅|一个地方|"
    r"很多地方|许多地方|不少地方|乡下|城里|郊外|户外|酒店|宾馆|朋友家|.*朋友家|"
    r"晚上|早上|白天|周末|假期|最近|一个人|两个人|大家|别人|人家|音乐会?里|手|脚|心|力|脑|来|作|到了|于|餐|处)"
)
_NAME = re.compile(
    r"[\u4e00-\u9fff]{2,4}|[\u4e00-\u9fff]{1,6}·[\u4e00-\u9fff]{1,8}|[a-z][a-z .'-]{1,30}|"
    r"[\u4e00-\u9fff]{1,2}[a-z]{1,12}"
)
_NO_NAME = re.compile(r".*(?:外卖|醒|了|车|人|客服|起来|出来|一声|自己|他|她|你|我|什么|高兴|不)")
_TOOLS = re.compile(
    r"[a-z0-9]|微信|钉钉|飞书|支付宝|华为|小米|苹果|鸿蒙|企业微信|语雀|有道|淘宝|京东|达梦|阿里云|腾讯云"
)


def values(raw: str, low: str, kind: str) -> list[str]:
    """The values in a piece of a clause, as they are spelled: one, or those of a list. `low` is the piece, folded."""
    if len(low) != len(raw):
        return []
    if kind not in LISTED:
        value = _checked(raw, low, kind)
        return [value] if value else []
    pieces = _BETWEEN.split(low)
    if len(pieces) == 2 and "的" in pieces[1] and "的" not in pieces[0] and len(pieces[0]) < 4:
        value = _checked(raw, low, "thing")  # "晴朗、温暖的天气"
        return [value] if value else []
    found: list[str] = []
    at = 0
    for match in (*_BETWEEN.finditer(low), None):
        end = match.start() if match else len(low)
        value = _checked(raw[at:end], low[at:end], kind)
        if not value:
            break
        found.append(value)
        at = match.end() if match else end
    return found[:10]


def _checked(raw: str, low: str, kind: str) -> str:
    begin, end = 0, len(low)
    while begin < end and low[begin] in _WRAP:
        begin += 1
    while begin < end and low[end - 1] in _WRAP:
        end -= 1
    if kind == "raw":
        return raw[begin:end]
    while begin < end and kind != "pet" and (last := _LAST.search(low, begin, end)) and last.start() > begin:
        end = last.start()
    low, raw = low[begin:end], raw[begin:end]
    size = len(re.sub(r"[a-z0-9_.+#/-]+", "ww", low))
    if not low or size > MOST or not any(c.isalnum() for c in low):
        return ""
    if kind == "name":
        return raw if _NAME.fullmatch(low) and not _NO_NAME.match(low) else ""
    if kind == "tool" and not _TOOLS.search(low):
        return ""
    if kind in ("pet", "role", "owns"):
        return "" if _BAD.search(low) and kind != "pet" else raw
    if kind == "place" and (
        size > 10
        or re.match(r"一|两|几|很|某|同|学校|家|酒店|新家|新房|了", low)
        or re.search(r"(?:酒店|宾馆|旅馆|旅店|旅舍|民宿|客栈|招待所|度假村|青旅|医院|朋友家|亲戚家)(?:里|内)?$", low)
    ):
        return ""
    if kind == "org" and (size > 14 or re.match(r"一起|一边|努力|外|晚|早|周|新的$|从|办公室|里$", low)):
        return ""
    if kind == "visited" and (
        size > 8 or re.match(r"一[家个座些次]|很多|许多|各|附近|几|了", low) or re.search(r"吃|看|买|和|散步|跑步", low)
    ):
        return ""
    if low[0] in "的在得" or low.startswith(("里面", "其中", "上面")):
        return ""
    if kind == "org" and re.fullmatch("(?:当前|现在的?|目前的?|一家|新|老|原来的?|本|某)(?:[^,]{0,2}的?)?公司", low):
        return ""
    if kind in ("phrase", "thing") and re.search("就是|如何|一下|新的?(?:技能|语言|东西|知识)$|一门新", low):
        return ""
    if kind == "phrase" and re.fullmatch(
        (
            "去?(?:[^,]{0,3}(?:吃|做).{0,2}(?:饭|餐)|睡觉|洗澡|上班|下班|休息|看电影|"
            "户外玩|玩|旅游|旅行|学习|散步|逛街|买菜|.*一个[^的]*)"
        ),
        low,
    ):
        return ""
    if _BAD.search(low) or _BAD_WHOLE.fullmatch(low):
        return ""
    if len(low) == 1 and kind not in ("list", "thing", "day", "tool"):
        return ""
    if len(low) == 1 and low not in "猫狗茶酒鱼肉虾蟹糖辣书花cr":
        return ""
    return raw
