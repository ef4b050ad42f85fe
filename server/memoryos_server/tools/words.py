"""Words made comparable: stems of English, one script for Chinese. The domain gets these functions handed in."""

from __future__ import annotations

import threading
import unicodedata

import Stemmer
from opencc import OpenCC

from memoryos_server.domain.core.text import is_cjk


class _Tools(threading.local):
    """The libraries' objects; they are not for several threads."""

    def __init__(self) -> None:
        self.stemmer = Stemmer.Stemmer("english")
        self.simplify = OpenCC("t2s")


class Words:
    """`stem` and `fold`. Each thread that uses them loads the dictionaries for itself (some 15 ms, once)."""

    def __init__(self) -> None:
        """Loads the dictionaries of this thread."""
        self._tools = _Tools()

    def stem(self, word: str) -> str:
        """The stem of a lower-case English word; other words come back nearly as they are."""
        return str(self._tools.stemmer.stemWord(word))

    def fold(self, text: str) -> str:
        """The text in one form for comparing: NFKC, lower case, simplified characters."""
        if text.isascii():
            return text.casefold()
        text = unicodedata.normalize("NFKC", text).casefold()
        return str(self._tools.simplify.convert(text)) if any(map(is_cjk, text)) else text
