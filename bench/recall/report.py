"""What was measured, as a table to read and a picture to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.recall.scorer import Tally

_BAR, _GAP, _LEFT, _WIDTH = 16, 14, 230, 420
_COLOURS = ("#8d99ae", "#bfa26a", "#3a6ea5", "#5aa469")


@dataclass(frozen=True, slots=True)
class Row:
    """One system, or one variant of ours, on one set.

    Attributes:
        set: The set's name.
        system: What was measured.
        tally: Its figures.
        note: Latencies, or what else is to be said.
        drawn: Whether the picture shows it.
    """

    set: str
    system: str
    tally: Tally
    note: str = ""
    drawn: bool = False


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, and recall at 10 by kind of question below."""
    budgets = sorted({budget for row in rows for budget in row.tally.budgets})
    heads = ["set", "system", "n", "recall@5", "recall@10", "NDCG@10", *(f"in {b} tokens" for b in budgets), "note"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        t, n = row.tally, max(1, row.tally.questions)
        cells = [row.set, row.system, str(t.questions), *(f"{100 * x / n:.1f}" for x in (t.at5, t.at10, t.ndcg))]
        cells += [f"{100 * t.budgets[b] / n:.1f}" if b in t.budgets else "" for b in budgets]
        lines.append("| " + " | ".join([*cells, row.note]) + " |")
    lines += ["", "Recall@10 by kind of question:", ""]
    lines += [f"- {row.set}, {row.system}: {row.tally.detail()}" for row in rows if row.drawn]
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[Row]) -> str:
    """Recall at 10 of the drawn rows as bars, in SVG."""
    sets: dict[str, list[Row]] = {}
    for row in rows:
        if row.drawn:
            sets.setdefault(row.set, []).append(row)
    parts: list[str] = []
    y = 34
    for name, drawn in sets.items():
        parts.append(f'<text x="8" y="{y + 4}" font-weight="bold">{escape(name)}</text>')
        y += _BAR
        for row, colour in zip(drawn, _cycle(len(drawn)), strict=True):
            share = row.tally.at10 / max(1, row.tally.questions)
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(row.system)}</text>')
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{share * _WIDTH:.1f}" height="{_BAR - 3}" fill="{colour}"/>'
            )
            parts.append(f'<text x="{_LEFT + share * _WIDTH + 6:.1f}" y="{y + 12}">{100 * share:.1f}</text>')
            y += _BAR
        y += _GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 60}" height="{y}"'
        ' font-family="sans-serif" font-size="12">'
    )
    title = '<text x="8" y="18" font-size="14">recall@10, percent of the evidence</text>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', title, *parts, "</svg>"]) + "\n"


def write(directory: Path, rows: Sequence[Row], about: Mapping[str, str]) -> None:
    """`recall.md` and `recall.svg` in a directory, which is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [f"- {name}: {value}" for name, value in about.items()]
    text = "\n".join(["# Recall", "", *lines, "", table(rows), "![recall at 10](recall.svg)", ""])
    (directory / "recall.md").write_text(text, "utf-8")
    (directory / "recall.svg").write_text(picture(rows), "utf-8")


def _cycle(count: int) -> list[str]:
    return [_COLOURS[n % len(_COLOURS)] for n in range(count)]
