"""What a chat cost, in tokens, and under which names costs are counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memoryos_server.domain.core.text import estimate_tokens

OTHER = "other"
"""Stands for every model beyond those that are counted by name."""

MOST_MODELS = 100
LONGEST_MODEL = 100
"""The most models that are counted by name, and the longest name: a client that can name any must not make counters grow."""

_SAMPLES, _SAMPLE_CHARS = 20, 1_000
_MOST = 2**40


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one chat.

    Attributes:
        input: What the provider read, the injected memories and what it had cached included.
        output: What it wrote, its reasoning included.
        cached: The part of the input that it had cached already.
        reasoning: The part of the output that is reasoning.
        injected: The part of the input that is memories; always an estimate of ours.
        estimated: Input and output are estimates of ours, because the provider said nothing.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0
    injected: int = 0
    estimated: bool = False


def reported(usage: object) -> Tokens | None:
    """What a provider's `usage` says, in the words of either of OpenAI's forms; None if it does not say what was read and written."""
    if not isinstance(usage, Mapping):
        return None
    for read, written in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        given, made = _count(usage.get(read)), _count(usage.get(written))
        if given is not None and made is not None:
            cached = _count(_inside(usage, f"{read}_details", "cached_tokens")) or 0
            reasoning = _count(_inside(usage, f"{written}_details", "reasoning_tokens")) or 0
            return Tokens(given, made, cached, reasoning)
    return None


def rough_tokens(text: str) -> int:
    """As `estimate_tokens`, in bounded time: what a long text costs is told from parts of it."""
    if len(text) <= _SAMPLES * _SAMPLE_CHARS or text.isascii():
        return estimate_tokens(text)
    step = len(text) // _SAMPLES
    sample = "".join(text[at : at + _SAMPLE_CHARS] for at in range(0, _SAMPLES * step, step))
    return estimate_tokens(sample) * len(text) // len(sample)


def rough_sum(texts: Iterable[str]) -> int:
    """What texts cost together, in bounded time however many there are."""
    given = list(texts)
    if sum(map(len, given)) <= _SAMPLES * _SAMPLE_CHARS:
        return sum(map(estimate_tokens, given))
    return rough_tokens("".join(given))


class ModelNames:
    """The names that models are counted under: their own for the first so many, `other` for the rest."""

    def __init__(self, most: int = MOST_MODELS) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, model: str) -> str:
        """The name for a model."""
        if model in self._known:
            return model
        # What cannot be printed, or not be written as UTF-8, would break what shows it.
        if len(model) > LONGEST_MODEL or not model.isprintable() or len(self._known) >= self._most:
            return OTHER
        self._known.add(model)
        return model


def _inside(usage: Mapping[str, object], part: str, name: str) -> object:
    details = usage.get(part)
    return details.get(name) if isinstance(details, Mapping) else None


def _count(value: object) -> int | None:
    """A count as a provider writes it; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if math.isfinite(value) and 0 <= value <= _MOST else None
