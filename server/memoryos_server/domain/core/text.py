"""Checks and small tools for text, shared by all domains."""

from __future__ import annotations

import unicodedata

from memoryos_server.domain.core.faults import Invalid

MAX_TEXT = 100_000
"""The longest content, text or query, in characters."""

MAX_ID = 256
"""The longest id of a user, event or session, in characters."""

TURN_TOKENS = 8
"""What a turn costs in a budget besides its text and name: its time, role and separators."""

NO_SESSION = "-"
"""What names, where a session is read or deleted, the turns without one. So no session is called that."""


def check_id(value: str, param: str) -> str:
    """Gives the id back.

    Raises:
        Invalid: It is empty, blank, over 256 characters, or has control characters.
    """
    if not value.strip() or len(value) > MAX_ID:
        raise Invalid(f"{param} must have 1..{MAX_ID} characters, not only blanks", param=param)
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        raise Invalid(f"{param} must not have control characters", param=param)
    return value


def check_session(value: str, param: str) -> str:
    """Gives the id of a session to write to back.

    Raises:
        Invalid: It is no id, or it is what names the turns without a session.
    """
    if value == NO_SESSION:
        raise Invalid(f"{param} must not be {NO_SESSION}: that names the turns without a session", param=param)
    return check_id(value, param)


def check_text(value: str, param: str, *, most: int = MAX_TEXT) -> str:
    """Gives the text back.

    Raises:
        Invalid: It is blank or over `most` characters.
    """
    if not value.strip():
        raise Invalid(f"{param} must not be empty", param=param)
    if len(value) > most:
        raise Invalid(f"{param} must have at most {most:,} characters, not {len(value):,}", param=param)
    return value


def sound(text: str) -> str:
    """The text as UTF-8 can hold it: halves of a surrogate pair that stand side by side are joined, single ones replaced.

    JSON can write a half as an escape, and whoever cuts text by UTF-16's units does.
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_cjk(char: str) -> bool:
    """Whether a character is a CJK ideograph, kana or hangul syllable: written without blanks between words, or best matched by bigrams."""
    code = ord(char)
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x3040 <= code <= 0x30FF
        or 0xAC00 <= code <= 0xD7AF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x2FA1F
    )


_DIGITS = b"0123456789"
_MARKS = bytes(range(0x21, 0x7F)).translate(
    None, b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-"
)
_HIGH = bytes(range(0x80, 0x100))


def estimate_tokens(text: str) -> int:
    """A conservative count of LLM tokens.

    Four letters, blanks or marks of prose count 1.3, a digit 1, any other mark 0.6, a CJK character 1.5, two bytes of anything
    else 1. Of the tokenizers it was compared with (cl100k, o200k, DeepSeek's, an old one of Anthropic's) the newer ones count less,
    of prose and of JSON with ids and dates.
    """
    data = text.encode("utf-8", "replace")  # half of a surrogate pair counts as a question mark
    plain = data if text.isascii() else data.translate(None, _HIGH)
    digits = len(plain) - len(plain.translate(None, _DIGITS))
    marks = len(plain) - len(plain.translate(None, _MARKS))
    cost = (len(plain) - digits - marks) / 4 * 1.3 + digits + marks * 0.6
    if len(plain) < len(data):
        cjk = "".join(c for c in text if is_cjk(c))
        cost += len(cjk) * 1.5 + (len(data) - len(plain) - len(cjk.encode())) / 2
    return int(cost) + 1


def turn_tokens(name: str, content: str) -> int:
    """What a turn costs in a budget, in estimated tokens."""
    return estimate_tokens(f"{name} {content}") + TURN_TOKENS
