"""Facts as sentences for people, in English, simplified and traditional Chinese."""

from __future__ import annotations

import re

from memoryos_server.domain.memory.extraction.model import FAVORITE, SPEAKER

# Predicate -> what holds, what held once; in English and in Chinese. `{}` is the value.
_ENGLISH = {
    "name": ("Is called {}", "Was called {}"),
    "age": ("Is {} years old", "Was {} years old"),
    "birthday": ("Birthday: {}", "Birthday was given as {}"),
    "email": ("E-mail address: {}", "Former e-mail address: {}"),
    "phone": ("Phone number: {}", "Former phone number: {}"),
    "lives_in": ("Lives in {}", "Used to live in {}"),
    "from": ("Comes from {}", "Came from {}"),
    "nationality": ("Is {}", "Was {}"),
    "works_at": ("Works at {}", "No longer works at {}"),
    "has_role": ("Works as {}", "Used to work as {}"),
    "studies_at": ("Studies at {}", "Used to study at {}"),
    "studies": ("Studies {}", "Used to study {}"),
    "relationship_status": ("Is {}", "Is no longer {}"),
    "partner": ("Partner: {}", "Former partner: {}"),
    "diet": ("Is {}", "Is no longer {}"),
    "trait": ("Is {}", "Is no longer {}"),
    "likes": ("Likes {}", "No longer likes {}"),
    "dislikes": ("Dislikes {}", "No longer dislikes {}"),
    "avoids": ("Avoids {}", "No longer avoids {}"),
    "hobby": ("Does {}", "No longer does {}"),
    "speaks": ("Speaks {}", "No longer speaks {}"),
    "skill": ("Is good at {}", "Used to be good at {}"),
    "allergic_to": ("Is allergic to {}", "Is no longer allergic to {}"),
    "condition": ("Has {}", "No longer has {}"),
    "has_relative": ("Has {}", "Had {}"),
    "has_child": ("Has {}", "Had {}"),
    "has_friend": ("Has {}", "Had {}"),
    "has_pet": ("Has {}", "Had {}"),
    "uses": ("Uses {}", "No longer uses {}"),
    "owns": ("Has {}", "No longer has {}"),
    "member_of": ("Joined {}", "Has left {}"),
    "attended": ("Attended {}", "Attended {}"),
    "visited": ("Has visited {}", "Has visited {}"),
    "learning": ("Is learning {}", "No longer learns {}"),
    "plans": ("Plans: {}", "No longer planned: {}"),
    "wants": ("Wants: {}", "No longer wanted: {}"),
    "works_on": ("Is working on {}", "No longer works on {}"),
    "watched": ("Has watched {}", "Has watched {}"),
    "read": ("Has read {}", "Has read {}"),
}
_CHINESE = {
    "name": ("名叫{}", "曾经名叫{}"),
    "age": ("{}岁", "曾经{}岁"),
    "birthday": ("生日是{}", "曾说生日是{}"),
    "email": ("邮箱是{}", "以前的邮箱是{}"),
    "phone": ("电话是{}", "以前的电话是{}"),
    "lives_in": ("住在{}", "曾经住在{}"),
    "from": ("来自{}", "曾说来自{}"),
    "nationality": ("是{}", "曾经是{}"),
    "works_at": ("在{}工作", "不再在{}工作"),
    "has_role": ("是{}", "曾经是{}"),
    "studies_at": ("在{}上学", "曾经在{}上学"),
    "studies": ("学习{}专业", "曾经学习{}专业"),
    "relationship_status": ("{}", "不再{}"),
    "partner": ("伴侣是{}", "以前的伴侣是{}"),
    "diet": ("吃{}", "不再吃{}"),
    "trait": ("性格{}", "性格不再{}"),
    "likes": ("喜欢{}", "不再喜欢{}"),
    "dislikes": ("不喜欢{}", "不再讨厌{}"),
    "avoids": ("不吃不用{}", "不再忌{}"),
    "hobby": ("爱好{}", "不再{}"),
    "speaks": ("会说{}", "不再说{}"),
    "skill": ("擅长{}", "曾经擅长{}"),
    "allergic_to": ("对{}过敏", "对{}不再过敏"),
    "condition": ("患有{}", "不再患有{}"),
    "has_relative": ("有{}", "曾经有{}"),
    "has_child": ("有{}", "曾经有{}"),
    "has_friend": ("有{}", "曾经有{}"),
    "has_pet": ("养了{}", "曾经养{}"),
    "uses": ("使用{}", "不再使用{}"),
    "owns": ("有{}", "不再有{}"),
    "member_of": ("加入了{}", "退出了{}"),
    "attended": ("参加了{}", "参加过{}"),
    "visited": ("去过{}", "去过{}"),
    "learning": ("在学{}", "不再学{}"),
    "plans": ("打算{}", "不再打算{}"),
    "wants": ("想要{}", "不再想要{}"),
    "works_on": ("在做{}", "不再做{}"),
    "watched": ("看过{}", "看过{}"),
    "read": ("读过{}", "读过{}"),
}
_ANY_ENGLISH = {
    "works_at": "No longer works at the former place",
    "lives_in": "Has moved away",
    "has_role": "No longer does the former job",
    "partner": "Is no longer with the former partner",
    "studies_at": "No longer studies at the former place",
}
_ANY_CHINESE = {
    "works_at": "已离开原来的工作",
    "lives_in": "已搬离原来的住处",
    "has_role": "不再做原来的工作",
    "partner": "已和原来的伴侣分开",
    "studies_at": "已从原来的学校毕业或离开",
}
# The characters of the sentences above in the traditional script.
_TRADITIONAL = str.maketrans(
    "岁邮参电话经说来学习专业侣喜欢讨厌爱长对过敏养这远离开处乡毕",
    "歲郵參電話經說來學習專業侶喜歡討厭愛長對過敏養這遠離開處鄉畢",
)


def english(subject: str, predicate: str, value: str, *, ended: bool) -> str:
    """A fact as an English sentence without a full stop."""
    if predicate.startswith(FAVORITE):
        thing = predicate.removeprefix(FAVORITE).replace("_", " ")
        said = f"Favorite {thing}: {value}" if not ended else f"Former favorite {thing}: {value}"
    elif not value:
        said = _ANY_ENGLISH.get(predicate, "No longer: " + predicate.replace("_", " "))
    else:
        said = _ENGLISH[predicate][ended].format(_with_article(value) if predicate in _COUNTED else value)
    return said if subject == SPEAKER else f"{subject[:1].upper()}{subject[1:]}: {said[:1].lower()}{said[1:]}"


_COUNTED = frozenset({"has_child", "has_relative", "has_friend", "has_pet", "owns"})
_COUNT = re.compile(r"(?:an?|the|my|one|two|three|four|five|six|seven|eight|nine|ten|\d+)\b", re.IGNORECASE)


def _with_article(value: str) -> str:
    if _COUNT.match(value) or (value[:1].isupper() and not value.isupper()):
        return value
    return f"{'an' if value[:1].casefold() in 'aeiou' else 'a'} {value}"


def chinese(subject: str, predicate: str, value: str, *, ended: bool, traditional: bool) -> str:
    """A fact as a Chinese sentence without a full stop."""
    if predicate.startswith(FAVORITE):
        said = f"以前最喜欢的{_FAVORITES.get(predicate, predicate[9:])}是" if ended else _favorite(predicate)
        said += "{}"
    elif not value:
        said = _ANY_CHINESE.get(predicate, "不再如此")
    else:
        said = _CHINESE[predicate][ended]
    if traditional:
        said = said.translate(_TRADITIONAL)
    if value[:1].isascii() and not said.startswith("{}"):
        said = said.replace("{}", " {}")  # as "使用 Python" is usually set
    said = said.replace("{}", value)
    return said if subject == SPEAKER else f"{subject}{said}"


def _favorite(predicate: str) -> str:
    return f"最喜欢的{_FAVORITES.get(predicate, predicate.removeprefix(FAVORITE))}是"


KINDS_ZH = {
    "颜色": "color",
    "食物": "food",
    "菜": "dish",
    "水果": "fruit",
    "电影": "movie",
    "书": "book",
    "歌": "song",
    "歌手": "singer",
    "音乐": "music",
    "运动": "sport",
    "季节": "season",
    "动物": "animal",
    "城市": "city",
    "编程语言": "programming_language",
    "游戏": "game",
    "作家": "author",
    "演员": "actor",
    "球队": "team",
    "饮料": "drink",
    "乐队": "band",
    "电视剧": "series",
    "地方": "place",
    "国家": "country",
    "小说": "novel",
}
"""What can be a favourite, in simplified Chinese, and its English name in the predicate."""
_FAVORITES = {FAVORITE + name: kind for kind, name in KINDS_ZH.items()}
