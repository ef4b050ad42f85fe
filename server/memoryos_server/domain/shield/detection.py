"""Finds attempts to take a model over: deterministic, in time in proportion to the text.

A text is folded first (case, width, look-alike letters, traditional characters, characters that nobody sees), then each
pattern whose triggers are in it is searched for. It reads; it never changes anything.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata

from memoryos_server.domain.shield import chinese, english, markers
from memoryos_server.domain.shield.model import STEM

_LATIN_ONES = (*english.PATTERNS, *markers.PATTERNS)
# With the first and last character of each anchor: most texts lack one of the two.
_CHINESE_ONES = [(one, [(anchor[0], anchor[-1]) for anchor in one.anchors]) for one in chinese.PATTERNS]
PATTERNS = (*_LATIN_ONES, *chinese.PATTERNS)

HIDDEN = ("hidden.tags", "hidden.unseen", "hidden.bidi", "encoded.base64")
"""What no pattern of words finds."""

IDS = tuple(dict.fromkeys((*(one.id for one in PATTERNS), *HIDDEN)))
"""The published names."""

_BLANKS = re.compile(r"\s+")
_LONG_WORD = 24
_MOST_DECODED = 16
_MOST_OF_ONE = 8192

# Letters of other scripts that look like Latin ones; only in words that mix both.
_LOOK_ALIKES = str.maketrans("аеорсухіѕјԁһӏνοαερι", "aeopcyxisjdhlvoaepi")
_MIXED = re.compile(r"[a-z][\u0370-\u04ff]|[\u0370-\u04ff][a-z]")
# Traditional characters that patterns have, each before its simplified form.
_TRADITIONAL = (
    "統统 詞词 無无 視视 規规 則则 設设 輸输 顯显 訴诉 洩泄 開开 發发 沒没 約约 對对 內内 關关 閉闭 審审 "
    "啟启 動动 複复 準准 導导 從从 現现 戶户 個个 這这 說说 違违 蓋盖 務务 讓让 為为 給给 條条 們们 覺觉 "
    "處处 進进 憑凭 環环 變变 數数 據据 記记 憶忆 寫写 應应 當当 須须 絕绝 誦诵 譯译 總总 隱隐 遊游 時时 "
    "該该 聽听 機机 號号 資资 錄录"
)
_SIGNS = "\u2018' \u2019' \u201c\" \u201d\" \u3001, \uff0c, \uff1a: \uff08( \uff09) \uff3b[ \uff3d]"
_SIMPLER = {pair[0]: pair[1] for pair in f"{_TRADITIONAL} {_SIGNS}".split()}
_COMPLICATED = re.compile(f"[{re.escape(''.join(_SIMPLER))}]")
# Letters in another dress: full width, mathematical, encircled, joined.
_STYLED = re.compile("[\uff21-\uff5a\U0001d400-\U0001d7ff\u2460-\u24ff\ufb00-\ufb06\u2100-\u214f\uff1c\uff1e\uff5c]")
_CHINESE = re.compile("[\u4e00-\u9fff]")
_WORDS = re.compile("[a-z]{2,}")


def suspicions(text: str) -> tuple[str, ...]:
    """The ids of what a text has, each once, in the order of `IDS`; empty for nearly every text."""
    found = _worded(folded(text))
    if not text.isascii():
        found |= _hidden(text, found)
    if _decoded_is_suspicious(text):
        found.add("encoded.base64")
    return tuple(name for name in IDS if name in found) if found else ()


def folded(text: str) -> str:
    """The text as patterns know it."""
    if not text.isascii():
        text = markers.UNSEEN.sub("", text)
        if _STYLED.search(text):
            text = unicodedata.normalize("NFKC", text)
        text = _COMPLICATED.sub(lambda found: _SIMPLER[found[0]], text)
    text = _BLANKS.sub(" ", text.lower())
    if not text.isascii() and _MIXED.search(text):
        text = text.translate(_LOOK_ALIKES)
    return text


def _worded(text: str) -> set[str]:
    found: set[str] = set()
    if words := _WORDS.findall(text):
        stems = {word[:STEM] for word in words}
        found |= {one.id for one in _LATIN_ONES if (not one.gate or one.gate & stems) and one.matches(text)}
    if not text.isascii() and _CHINESE.search(text):
        signs = set(text)
        found |= {
            one.id
            for one, ends in _CHINESE_ONES
            if any(first in signs and last in signs for first, last in ends) and one.matches(text)
        }
    return found


def _hidden(text: str, found: set[str]) -> set[str]:
    """What non-ASCII characters of a text hide."""
    hidden: set[str] = set()
    if markers.TAGS.search(text) and markers.TAGS.search(markers.FLAGS.sub("", text)):
        hidden.add("hidden.tags")
        spelled = "".join(chr(ord(c) - 0xE0000) for c in text if "\U000e0020" <= c <= "\U000e007e")
        hidden |= _worded(folded(spelled))
    if markers.UNSEEN_RUN.search(text):
        hidden.add("hidden.unseen")
    elif found and markers.UNSEEN.search(text):
        # Only what is not found as the text stands was hidden by them: soft hyphens alone are harmless.
        plain = markers.UNSEEN.sub(" ", text)
        if found - _worded(folded(plain)):
            hidden.add("hidden.unseen")
    if markers.OVERRIDES.search(text):
        hidden.add("hidden.bidi")
    return hidden


def _decoded_is_suspicious(text: str) -> bool:
    looked = 0
    for word in text.split():
        if len(word) < _LONG_WORD:
            continue
        for match in markers.ENCODED.finditer(word):
            if looked == _MOST_DECODED:
                return False
            plain = _decoded(match[0][:_MOST_OF_ONE])
            if plain is not None:
                looked += 1
                if _worded(folded(plain)):
                    return True
    return False


def _decoded(text: str) -> str | None:
    """What Base64 text says, None if it says nothing that can be read."""
    bare = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    bare = bare[: len(bare) - len(bare) % 4] if len(bare) % 4 == 1 else bare + "=" * (-len(bare) % 4)
    try:
        plain = base64.b64decode(bare, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    return plain if plain.replace("\n", "").isprintable() else None
