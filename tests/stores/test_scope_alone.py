"""`stores/scope.py` alone makes keys of the store and filters of a subject: read from the syntax of all the others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import memoryos_server

ROOT = Path(memoryos_server.__file__).parent
SCOPE = ROOT / "stores" / "scope.py"

TAG = re.compile(r"\{(memoryos\}|p(\d|\*|%|\\d|$))")
"""How a key of ours begins, whole or as the piece of an f-string in front of a partition's number."""

RECOGNISE = {"keyring_parts.py", "portable_keys.py"}
"""These tell what a key that is there belongs to; the only place for a tag in them is a regular expression."""

PATTERNS = {"redis_doctor.py"}
"""This one shows the operator which keys a user of the store must be allowed."""


def spelled(tree: ast.AST, name: str) -> Iterator[str]:
    """Where a module spells a tag or a filter itself."""
    outer = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if isinstance(outer[node], ast.Expr) or not TAG.search(text.replace(r"\{", "{").replace(r"\}", "}")):
                continue  # a docstring, or nothing of ours
            call = outer[node]
            recognises = isinstance(call, ast.Call) and ast.unparse(call.func) == "re.compile"
            if not (name in RECOGNISE and recognises) and name not in PATTERNS:
                yield f"{name}:{line} spells a key: {text[:40]!r}"
        elif isinstance(node, ast.Attribute) and node.attr == "tag":
            yield f"{name}:{line} takes a partition's tag, of which only keys can be made"
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "s" and made(value):
                    yield f"{name}:{line} makes a filter: {ast.unparse(value)}"
        elif isinstance(node, ast.Call) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and first.value == "s" and any(map(made, node.args[1:])):
                yield f"{name}:{line} makes a filter: {ast.unparse(node)}"


def made(value: ast.expr) -> bool:
    """Whether a filter's value is put together on the spot, and not one that `Scope` gave."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "corpus":
        return False
    for node in ast.walk(value):
        if isinstance(node, ast.JoinedStr | ast.BinOp):
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 2:
            return True  # shorter ones are names of fields
        if isinstance(node, ast.Attribute) and node.attr in ("id", "subject_id", "user_id", "tenant_id"):
            return True
    return False


@pytest.mark.parametrize(
    "code",
    [
        'x = "{memoryos}:thing"',
        'x = f"{{memoryos}}:thing:{name}"',
        'x = f"{{p{number:03d}}}:thing"',
        'x = b"{p007}:thing"',
        'x = "{p%03d}:thing" % number',
        'x = f"{partition.tag}:thing"',
        'x = matching({"s": subject.id})',
        'x = {"s": f"{subject.id}/fact", "y": 1}',
        'x = forms.equal("s", subject.id)',
        'x = forms.any_of("s", ["0" * 32])',
        'x = re.compile(r"\\{p\\d{3}\\}:thing")',
    ],
)
def test_reading_when_a_module_spells_a_key_or_a_filter_then_it_is_found(code: str) -> None:
    assert len(list(spelled(ast.parse(code), "other.py"))) == 1


def test_server_when_read_then_only_scope_makes_keys_and_filters() -> None:
    read = [path for path in sorted(ROOT.rglob("*.py")) if path != SCOPE]
    assert len(read) > 200
    found = [line for path in read for line in spelled(ast.parse(path.read_text("utf-8")), path.name)]
    assert not found, "\n".join(found)
    assert any(True for _ in spelled(ast.parse(SCOPE.read_text("utf-8")), SCOPE.name))
