from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from memoryos import schema
from scripts.generate import ROOT, lay_dependencies

BIN = Path(sys.executable).parent
_WIDE = {getattr(FieldDescriptor, f"TYPE_{t}") for t in ("INT64", "UINT64", "SINT64", "FIXED64", "SFIXED64")}


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_layers_when_checked_then_every_import_is_allowed() -> None:
    _run(str(BIN / "lint-imports"), "--no-cache")


def test_protos_when_linted_then_nothing_is_found() -> None:
    lay_dependencies()
    _run(str(BIN / "buf"), "lint")


def test_protos_when_compared_with_themselves_changed_then_the_breaking_check_sees_it(tmp_path: Path) -> None:
    # The positive control of `make breaking`, which has nothing to compare with before the first release.
    lay_dependencies()
    image, other = tmp_path / "now.binpb", tmp_path / "then.binpb"
    _run(str(BIN / "buf"), "build", "-o", str(image))
    workspace = tmp_path / "then"
    for name in ("proto", ".proto-deps"):
        for path in (ROOT / name).rglob("*.proto"):
            target = workspace / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(re.sub(r"\bstring memory_id = (\d+)", r"string memory_id = 9\1", path.read_text()))
    (workspace / "buf.yaml").write_text((ROOT / "buf.yaml").read_text())
    subprocess.run([BIN / "buf", "build", "-o", other], cwd=workspace, check=True)
    check = [str(BIN / "buf"), "breaking", str(image), "--config", "buf.yaml", "--against"]
    _run(*check, str(image))
    done = subprocess.run([*check, str(other)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "memory_id" in done.stdout


def _messages(message: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    if message.full_name in seen or message.full_name.startswith("google.protobuf."):
        return
    seen.add(message.full_name)
    yield message
    for field in message.fields:
        if field.message_type is not None:
            yield from _messages(field.message_type, seen)


def test_messages_when_rest_shows_them_then_no_number_is_64_bits_wide() -> None:
    seen: set[str] = set()
    shown = [
        message
        for method in schema.load()
        if method.routes
        for top in (method.descriptor.input_type, method.descriptor.output_type)
        for message in _messages(top, seen)
    ]
    assert len(shown) > 20  # the walk reaches nested messages
    wide = [field.full_name for message in shown for field in message.fields if field.type in _WIDE]
    assert wide == [], "JSON would show these as strings"


@pytest.mark.parametrize("path", sorted((ROOT / "proto").rglob("*.proto")), ids=lambda path: path.name)
def test_comments_when_a_proto_declares_something_then_one_begins_with_its_name(path: Path) -> None:
    lines = path.read_text().splitlines()
    declared = re.compile(
        r"^\s*(?:(?:service|rpc|message|enum)\s+(\w+)|(?:optional |repeated )?[\w.]+ (\w+) = \d+|([A-Z][A-Z0-9_]+) = \d+)\b"
    )
    missing = []
    for number, line in enumerate(lines):
        match = declared.match(line)
        if match is None:
            continue
        name = next(group for group in match.groups() if group)
        above = number - 1
        while above >= 0 and lines[above].strip().startswith("//"):
            above -= 1
        comment = lines[above + 1].strip() if above + 1 < number else ""
        if not comment.startswith(f"// {name} "):
            missing.append(f"{path.name}:{number + 1} {name}")
    assert missing == []


def test_enums_when_they_have_a_zero_then_it_says_unspecified() -> None:
    enums: list[EnumDescriptor] = [e for file in schema.FILES for e in file.enum_types_by_name.values()]
    for file in schema.FILES:
        for dependency in file.dependencies:
            if dependency.package == "memoryos.v1":
                enums += dependency.enum_types_by_name.values()
    assert enums
    assert [e.full_name for e in enums if not e.values_by_number[0].name.endswith("_UNSPECIFIED")] == []
