"""The protocol's arithmetic: recall at k, NDCG at 10, and plain BM25 to stand beside."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.recall.sets import Asked, Conversation, Line

DEPTH = 50
"""How many episodes are asked for."""


@dataclass(slots=True)
class Tally:
    """Sums over questions; every question counts the same.

    Attributes:
        questions: How many.
        at5: Recall at 5, summed.
        at10: Recall at 10, summed.
        ndcg: NDCG at 10, summed.
        kinds: Category -> (questions, recall at 10 summed).
        budgets: Budget -> evidence recall inside it, summed.
    """

    questions: int = 0
    at5: float = 0.0
    at10: float = 0.0
    ndcg: float = 0.0
    kinds: dict[str, tuple[int, float]] = field(default_factory=dict)
    budgets: dict[int, float] = field(default_factory=dict)

    def add(self, asked: Asked, ranking: Sequence[str]) -> None:
        """Counts one question's ranking."""
        at10 = share(asked.evidence, ranking[:10])
        self.questions += 1
        self.at5 += share(asked.evidence, ranking[:5])
        self.at10 += at10
        self.ndcg += ndcg(asked.evidence, ranking)
        n, total = self.kinds.get(asked.category, (0, 0.0))
        self.kinds[asked.category] = (n + 1, total + at10)

    def add_budget(self, budget: int, asked: Asked, packed: Sequence[str]) -> None:
        """Counts what of a question's evidence is inside a budget."""
        self.budgets[budget] = self.budgets.get(budget, 0.0) + share(asked.evidence, packed)

    def merge(self, other: Tally) -> None:
        """Counts another tally's questions, too."""
        self.questions += other.questions
        self.at5 += other.at5
        self.at10 += other.at10
        self.ndcg += other.ndcg
        for kind, (count, share_of) in other.kinds.items():
            n, total = self.kinds.get(kind, (0, 0.0))
            self.kinds[kind] = (n + count, total + share_of)
        for budget, total in other.budgets.items():
            self.budgets[budget] = self.budgets.get(budget, 0.0) + total

    def line(self) -> str:
        """The averages in one line, in percent."""
        n = max(1, self.questions)
        values = {"recall@5": self.at5, "recall@10": self.at10, "NDCG@10": self.ndcg}
        text = "  ".join(f"{name} {100 * total / n:5.1f}" for name, total in values.items())
        for budget, total in sorted(self.budgets.items()):
            text += f"  in {budget} tokens {100 * total / n:5.1f}"
        return text

    def detail(self) -> str:
        """Recall at 10 by category, with counts."""
        return "  ".join(f"{kind} {100 * total / n:.1f} (n={n})" for kind, (n, total) in sorted(self.kinds.items()))


def share(evidence: frozenset[str], found: Iterable[str]) -> float:
    """The share of the evidence that was found."""
    return len(evidence & set(found)) / len(evidence)


def ndcg(evidence: frozenset[str], ranking: Sequence[str]) -> float:
    """Binary NDCG at 10."""
    gain = sum(1 / math.log2(place + 2) for place, one in enumerate(ranking[:10]) if one in evidence)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(10, len(evidence))))


def folded(conversation: Conversation, ids: Iterable[str]) -> list[str]:
    """Ids as the evidence names them: with `pairs` cut at the last `/`, the first occurrence counting."""
    if not conversation.pairs:
        return list(ids)
    return list(dict.fromkeys(one.rsplit("/", 1)[0] for one in ids))


class PlainBm25:
    """BM25 as anybody would write it: split on blanks, lower case, k1 1.2, b 0.75."""

    def __init__(self, lines: Sequence[Line]) -> None:
        """Counts words."""
        texts = [line.text.lower().split() for line in lines]
        average = sum(map(len, texts)) / max(1, len(texts))
        self._ids = [line.id for line in lines]
        self._postings: dict[str, list[tuple[int, float]]] = {}
        for place, words in enumerate(texts):
            norm = 1.2 * (1 - 0.75 + 0.75 * len(words) / average)
            for word, times in Counter(words).items():
                self._postings.setdefault(word, []).append((place, times * 2.2 / (times + norm)))

    def rank(self, question: str) -> list[str]:
        """The ids that share a word with the question, best first, at most 50; of equals, the earlier."""
        scores: dict[int, float] = {}
        for word in set(question.lower().split()):
            postings = self._postings.get(word, ())
            rarity = math.log(1 + (len(self._ids) - len(postings) + 0.5) / (len(postings) + 0.5))
            for place, weight in postings:
                scores[place] = scores.get(place, 0.0) + rarity * weight
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:DEPTH]
        return [self._ids[place] for place, _ in best]
