"""Takes secrets and personal data out of what is remembered: deterministic, and the same again on its own result.

A kind is found by its form, and where it has one by its checksum; what only looks a little like it (order numbers, dates,
versions, digests) stays. Every form is bounded, so that a text takes time in proportion to its length.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

_Matched = re.Match[str]


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())


# Secrets ----------------------------------------------------------------------------------------------------------------

_NOT_BEFORE = r"(?<![A-Za-z0-9_-])"
_KNOWN = re.compile(
    _NOT_BEFORE + r"(?:"
    r"sk-(?:[A-Za-z0-9]{1,16}-){0,3}[A-Za-z0-9_-]{20,200}"  # OpenAI, Anthropic and many after them
    r"|mos-[A-Za-z0-9_-]{40,64}"  # ours
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{40,255}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|(?:AKIA|ASIA|AGPA|AROA|AIDA)[A-Z0-9]{16}(?![A-Z0-9])"  # AWS
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,500}|GOCSPX-[A-Za-z0-9_-]{28}"  # Google
    r"|LTAI[A-Za-z0-9]{12,24}(?![A-Za-z0-9])|AKID[A-Za-z0-9]{16,40}"  # Alibaba Cloud, Tencent Cloud
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}"
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,250}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}|hf_[A-Za-z0-9]{30,64}|dop_v1_[0-9a-f]{64}"
    r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"
    r"|eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{8,2000}"  # JSON Web Tokens
    r")(?![A-Za-z0-9_])"
)
_PREFIXES = [
    "sk-",
    "mos-",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "AKIA",
    "ASIA",
    "AGPA",
    "AROA",
    "AIDA",
    "AIza",
    "ya29.",
    "GOCSPX-",
    "LTAI",
    "AKID",
    "xox",
    "_live_",
    "_test_",
    "npm_",
    "pypi-",
    "hf_",
    "dop_v1_",
    "SG.",
    "eyJ",
]
_PEM = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BEARER = re.compile(r"(?i)(?<![a-z])(bearer[ \t]{1,4})([A-Za-z0-9._~+/=-]{20,4000})")
_IN_URL = re.compile(r"(://[^\s/:@]{1,64}:)([^\s/@\[]{1,128})(@)")
_SAID = re.compile(
    r"(?i)((?:(?<![a-z])(?:password|passwd|passphrase|pwd|passcode|(?:api|access|secret|private|auth|client|account)[ _-]?(?:access[ _-]?)?"
    r"(?:key|token|secret)|secret|token|pin code)(?:[ ]is)?[\"']?[ \t]{0,3}[:=][=>]?[ \t]{0,3}"
    r"|(?:密码|口令|密钥|令牌)(?:[ ]?是|为)?[ \t]{0,2}[:：=是为]?[ \t]{0,3})[\"'`]?)"
    r"([^\s\"'`,;，。；、\[\]<>(){}\u4e00-\u9fff]{4,256})"
)
_SAID_WORDS = re.compile(r"(?i)pass|pwd|key|secret|token|pin code|密码|口令|密钥|令牌")
_NO_SECRETS = frozenset(
    [
        "required",
        "optional",
        "none",
        "null",
        "true",
        "false",
        "string",
        "text",
        "number",
        "hidden",
        "changed",
        "reset",
        "forgot",
        "forgotten",
        "missing",
        "invalid",
        "valid",
        "expired",
        "unknown",
        "empty",
        "here",
        "below",
        "above",
        "yours",
        "mine",
        "same",
        "different",
        "incorrect",
        "correct",
        "wrong",
        "weak",
        "strong",
        "example",
        "your",
        "undefined",
        "default",
        "todo",
        "bool",
        "integer",
        "object",
        "self",
        "type",
        "name",
        "field",
    ]
)
_ENTROPY = 2.5
"""Bits a character that what stands behind `token:` must have: words of a sentence have less, or no digit."""


def _entropy(text: str) -> float:
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())


def _said(match: _Matched) -> str:
    name, value = match[1], match[2]
    bare = value.rstrip(".!?:")
    if bare.lower() in _NO_SECRETS or len(bare) < 4 or bare.startswith(("redacted", "http://", "https://", "$", "*")):
        return match[0]
    if not re.search(r"(?i)pass|pwd|密码|口令|pin", name):
        # A key or token is no word: it mixes letters and digits.
        if len(bare) < 12 or not (re.search(r"\d", bare) and re.search(r"[A-Za-z]", bare)) or _entropy(bare) < _ENTROPY:
            return match[0]
    elif re.search(r"[:：=]", name) is None and not re.search(r"\d|[^A-Za-z0-9]", bare):
        return match[0]  # `密码 hello` without a sign between may be a sentence
    return f"{name}[redacted:secret]{value[len(bare) :]}"


def _without_pem(text: str) -> str:
    kept, at = [], 0
    while (begin := _PEM.search(text, at)) is not None:
        end = _PEM_END.search(text, begin.end())
        kept += [text[at : begin.start()], "[redacted:secret]"]
        at = end.end() if end else len(text)
    return "".join([*kept, text[at:]])


def _secrets(text: str) -> str:
    if "PRIVATE KEY" in text:
        text = _without_pem(text)
    if any(prefix in text for prefix in _PREFIXES):
        text = _KNOWN.sub("[redacted:secret]", text)
    if "earer" in text or "EARER" in text:
        text = _BEARER.sub(r"\1[redacted:secret]", text)
    if "://" in text and "@" in text:
        text = _IN_URL.sub(r"\1[redacted:secret]\3", text)
    return _SAID.sub(_said, text) if _SAID_WORDS.search(text) else text


# Personal data ----------------------------------------------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+'-])[A-Za-z0-9_%+'-](?:[A-Za-z0-9._%+'-]{0,63})@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)

# What makes a row of digits something else than a number to call.
_LABEL = re.compile(
    r"(?i)(?:order|invoice|ticket|tracking|serial|account|ref(?:erence)?|id|no|nr|number|version|sku|isbn|订单号?|单号|编号|序号|流水号|快递)"
    r"[ #:：.是为]{0,4}$"
)
_TO_CALL = re.compile(r"(?i)(?:phone|mobile|call|tel|cell|fax|whatsapp|contact)[a-z ]{0,12}(?:number|no)[ #:：.]{0,4}$")
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"
    r"|\+[1-9]\d{0,2}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
    r"|\(\d{3}\) ?\d{3}-\d{4}|[2-9]\d{2}[-.][2-9]\d{2}[-.]\d{4}"
    r"|\(?0\d{2,3}\)?-\d{7,8}"
    r")(?![\w/]|[.-]\d)",
    re.ASCII,
)


def _phone(match: _Matched) -> str:
    count = len(_digits(match[0]))
    before = match.string[max(0, match.start() - 24) : match.start()]
    plain = match[0].isdigit()  # nothing but digits: what it is called decides
    if not 7 <= count <= 15 or (plain and _LABEL.search(before) and not _TO_CALL.search(before)):
        return match[0]
    if match[0].startswith("+") and count < 8:
        return match[0]
    return "[redacted:phone]"


_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w]|[.-]\d)", re.ASCII)
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}"
    r"|35\d{14}|3(?:0[0-5]|[68]\d)\d{11}"
)


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def _card(match: _Matched) -> str:
    digits = _digits(match[0])
    return "[redacted:card]" if _ISSUERS.fullmatch(digits) and _luhn(digits) and len(set(digits)) > 1 else match[0]


_RESIDENT = re.compile(
    r"(?<![\w.-])[1-8]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\w)", re.ASCII
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_SOCIAL = re.compile(r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])", re.ASCII)


def _resident(match: _Matched) -> str:
    total = sum(int(digit) * weight for digit, weight in zip(match[0], _WEIGHTS, strict=False))
    return "[redacted:id_number]" if match[0][17].upper() == "10X98765432"[total % 11] else match[0]


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")


def _iban(match: _Matched) -> str:
    bare = match[0].replace(" ", "")
    if not 15 <= len(bare) <= 34:
        return match[0]
    number = "".join(str(int(c, 36)) for c in bare[4:] + bare[:4])
    return "[redacted:iban]" if int(number) % 97 == 1 else match[0]


_ROW = re.compile(r"\d[\d ()+.-]{5}", re.ASCII)


def _emails(text: str) -> str:
    return _EMAIL.sub("[redacted:email]", text) if "@" in text else text


def _phones(text: str) -> str:
    return _PHONE.sub(_phone, text) if _ROW.search(text) else text


def _cards(text: str) -> str:
    return _CARD.sub(_card, text) if _ROW.search(text) else text


def _id_numbers(text: str) -> str:
    if not _ROW.search(text):
        return text
    return _SOCIAL.sub("[redacted:id_number]", _RESIDENT.sub(_resident, text))


def _ibans(text: str) -> str:
    return _IBAN.sub(_iban, text) if _ROW.search(text) else text


# In the order in which they are taken out: a longer number before one that could be a part of it.
KINDS: dict[str, Callable[[str], str]] = {
    "secrets": _secrets,
    "email": _emails,
    "id_number": _id_numbers,
    "iban": _ibans,
    "card": _cards,
    "phone": _phones,
}
"""Kind -> what takes it out of a text."""


def redactor(kinds: Sequence[str]) -> Callable[[str], str]:
    """What takes kinds out of a text.

    Raises:
        ValueError: There is no such kind; the message names it.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"unknown kind {unknown[0]!r}; one of {', '.join(KINDS)}")
    steps = [step for kind, step in KINDS.items() if kind in kinds]

    def redact(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return redact
