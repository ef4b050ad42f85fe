"""Words made comparable: stems of English, one script for Chinese. The domain gets these functions handed in."""

from __future__ import annotations

import unicodedata

import Stemmer
from opencc import OpenCC

from memoryos_server.domain.core.text import is_cjk


class Words:
    """`stem` and `fold`, with their dictionaries loaded (some 15 ms). Not for several threads at once."""

    def __init__(self) -> None:
        """Loads the dictionaries."""
        self._stemmer = Stemmer.Stemmer("english")
        self._simplify = OpenCC("t2s")

    def stem(self, word: str) -> str:
        """The stem of a lower-case English word; other words come back nearly as they are."""
        return str(self._stemmer.stemWord(word))

    def fold(self, text: str) -> str:
        """The text in one form for comparing: NFKC, lower case, simplified characters."""
        text = unicodedata.normalize("NFKC", text).casefold()
        return str(self._simplify.convert(text)) if any(map(is_cjk, text)) else text
