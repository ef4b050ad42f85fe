"""Retrieval sets: conversations, questions, and which turns answer them. They lie in a directory of the caller's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    """One turn as it is added.

    Attributes:
        id: The event id.
        session: The session id.
        role: `user` or `assistant`.
        name: The speaker.
        text: What was said; an image's caption is a last line `[image: …]`.
        time: When.
    """

    id: str
    session: str
    role: str
    name: str
    text: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its evidence.

    Attributes:
        text: The question as it stands.
        category: Its kind.
        evidence: The ids of the turns (with `pairs`: of the pairs) that answer it; never empty.
    """

    text: str
    category: str
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One user's memory and the questions to it.

    Attributes:
        id: The user.
        language: Such as `en`.
        pairs: Evidence names pairs of turns: ids are cut at their last `/`.
        lines: In the order they were said.
        questions: Those with evidence.
    """

    id: str
    language: str
    pairs: bool
    lines: Sequence[Line]
    questions: Sequence[Asked]


def available(directory: Path) -> list[str]:
    """The names of the sets in a directory, sorted; empty if it is not there."""
    return sorted(path.stem for path in directory.glob("*.json"))


def load(directory: Path, name: str, most: int | None = None) -> list[Conversation]:
    """The conversations of a set, at most `most`."""
    raw = json.loads((directory / f"{name}.json").read_bytes())["conversations"]
    return [_conversation(one) for one in raw[:most]]


def samples(directory: Path) -> list[Conversation]:
    """One English and one Chinese conversation for an end-to-end test; those whose set is not there are left out."""
    names = [name for name in ("locomo_dev", "memorybank_zh_dev") if (directory / f"{name}.json").is_file()]
    return [conversation for name in names for conversation in load(directory, name, 1)]


def _conversation(raw: dict[str, object]) -> Conversation:
    lines = []
    for turn in _records(raw["turns"]):
        text = str(turn["text"])
        if caption := turn.get("image_caption"):
            text = f"{text}\n[image: {caption}]"
        if not text.strip():
            continue
        speaker = str(turn["speaker"])
        lines.append(
            Line(
                id=str(turn["id"]),
                session=str(turn["session"]),
                role="assistant" if speaker == "assistant" else "user",
                name=speaker,
                text=text,
                time=datetime.fromisoformat(str(turn["time"]).replace("Z", "+00:00")),
            )
        )
    questions = [
        Asked(str(q["question"]), str(q["category"]), frozenset(str(e) for e in _list(q["evidence"])))
        for q in _records(raw["questions"])
        if q["evidence"]
    ]
    return Conversation(str(raw["id"]), str(raw["language"]), bool(raw.get("pairs")), lines, questions)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("a list is expected")
    return value


def _records(value: object) -> list[dict[str, object]]:
    return [item for item in _list(value) if isinstance(item, dict)]
