"""Runs every block of the README and of each page in `docs`, in order, against a system of its own.

A block's info string says how: `run` runs it; `json` after it is the shape of what it printed, `json part` that of some of its
members; `start` and `keys` start the system (the last line is replaced by the same command on free ports); `settings` is
checked for what it sets; `make` names targets. A block of another kind fails the test, so that none goes unchecked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memoryos.schema import load
from memoryos.settings import known
from memoryos.settings import load as load_settings
from memoryos_server.tools.llm.table import read_table
from scripts.generate import ROOT
from tests.clients.supervised import Up

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
README = (ROOT / "README.md").read_text("utf-8")
KINDS = {
    "sh start",
    "sh run",
    "sh run grpcurl",
    "sh run auth",
    "sh settings",
    "toml settings",
    "sh keys",
    "sh make",
    "python run",
    "json",
    "json part",
}
PAGE_KINDS = {"sh run", "sh live", "toml settings", "toml providers", "json", "json part"}
"""`sh live` needs stores of the reader's own, and is not run."""
ANSWERS = (
    ("coffee?", "black"),
    ("Where does Eva live?", "Porto"),
    ("2024-12-31", "Lives in Paris."),
    ("Which Python version?", "Python 3.12"),
    ("What is my dog called?", "Rex"),
    ("import --user ann chatgpt-export.zip", "imported 2 turns"),
)
EXACT = (
    *(".content", ".role", ".status", ".profile", ".knowledge[]", ".text", ".subject", ".predicate", ".facts[].value"),
    *(".state", ".reason", "[].version"),
)
"""What must be as it is shown, not only of its form."""

EXPORT = [
    {
        "id": "c1",
        "create_time": 1700000000,
        "current_node": "b",
        "mapping": {
            "root": {"message": None, "parent": None, "children": ["a"]},
            "a": {
                "parent": "root",
                "children": ["b"],
                "message": {
                    "id": "a",
                    "author": {"role": "user"},
                    "create_time": 1700000001,
                    "content": {"content_type": "text", "parts": ["My dog is called Rex."]},
                },
            },
            "b": {
                "parent": "a",
                "children": [],
                "message": {
                    "id": "b",
                    "author": {"role": "assistant"},
                    "create_time": 1700000002,
                    "content": {"content_type": "text", "parts": ["That is a fine name for a dog."]},
                },
            },
        },
    }
]
"""What a reader has at hand: a data export of ChatGPT."""


@dataclass(frozen=True, slots=True)
class Block:
    line: int
    kind: str
    text: str
    page: str = "README.md"

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks(page: str, content: str) -> list[Block]:
    return [
        Block(content.count("\n", 0, match.start()) + 2, match[1].strip(), match[2], page)
        for match in re.finditer(r"^```([^\n`]+)\n(.*?)^```$", content, re.M | re.S)
    ]


BLOCKS = _blocks("README.md", README)


class Reader:
    """A newcomer who follows the README from top to bottom."""

    def __init__(self, home: Path) -> None:
        self.up = Up(home)
        self.env = {**self.up.system.env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        (home / ".venv").symlink_to(Path(sys.executable).parent.parent)
        with zipfile.ZipFile(home / "chatgpt-export.zip", "w") as archive:
            archive.writestr("conversations.json", json.dumps(EXPORT))

    def here(self, text: str) -> str:
        """The text with this system's addresses."""
        return text.replace("127.0.0.1:8080", self.up.system.http).replace("127.0.0.1:50051", self.up.system.grpc)

    def run(self, block: Block) -> str:
        text = self.here(block.text)
        shell = ["sh", "-euc", text] if block.kind.startswith("sh") else [sys.executable, "-c", text]
        done = subprocess.run(shell, env=self.env, cwd=self.up.system.home, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{block.place}\n{done.stdout}\n{done.stderr}\n{self.up.text()}"
        return done.stdout


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    made.up.stop()


def _same_shape(shown: Any, got: Any, where: str) -> None:
    if isinstance(shown, dict):
        assert isinstance(got, dict), where
        assert shown.keys() == got.keys(), where
        for key, value in shown.items():
            _same_shape(value, got[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert isinstance(got, list), where
        assert bool(shown) == bool(got), where
        pairs = zip(shown, got, strict=True) if len(shown) > 1 else ((shown[0], item) for item in got)
        for one, item in pairs:
            _same_shape(one, item, f"{where}[]")
    elif isinstance(shown, bool) or where.endswith(EXACT):
        assert shown == got, where
    else:
        assert isinstance(got, (int, float) if isinstance(shown, (int, float)) else type(shown)), where


def _compare(block: Block, printed: str) -> None:
    shown, got = json.loads(block.text), json.loads(printed)
    if block.kind == "json part":
        got = {name: value for name, value in got.items() if name in shown}
    _same_shape(shown, got, f"{block.place} ")


def _judge(block: Block, printed: str) -> None:
    """What a reader would see at a glance: the commands that answer a question answer it."""
    assert '"error"' not in printed, f"{block.place}\n{printed}"
    for asked, expected in ANSWERS:
        if asked in block.text:
            assert expected in printed, f"{block.place}\n{printed}"
    if '"stream": true' in block.text:
        assert printed.strip().endswith("data: [DONE]"), printed


def test_blocks_when_read_then_each_is_of_a_kind_that_is_checked() -> None:
    assert len(BLOCKS) == README.count("\n```") / 2
    assert {block.kind for block in BLOCKS} == KINDS
    for page, content in PAGES.items():
        blocks = _blocks(page, content)
        assert len(blocks) == content.count("\n```") / 2, page
        assert {block.kind for block in blocks} <= PAGE_KINDS, page


def test_links_when_local_then_they_lead_somewhere() -> None:
    documents = [path for path in ROOT.glob("*.md") if path.is_file()]
    documents += [*ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/**/*.md"), *ROOT.glob("deploy/**/*.md")]
    links = [
        (path.relative_to(ROOT), link)
        for path in documents
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
        if "://" not in link
    ]
    assert len(links) > 10
    assert [(str(path), link) for path, link in links if not (ROOT / path.parent / link).exists()] == []


def test_settings_when_named_then_they_exist() -> None:
    permissions = {method.permission for method in load()}
    names = {item.name for item in known({"HOME": "/h"})}
    sections = {name.partition(".")[0] for name in names}
    text = "".join((README, (ROOT / "SECURITY.md").read_text("utf-8"), *PAGES.values()))
    dotted = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", text))
    assert {name for name in dotted - permissions if name.partition(".")[0] in sections} <= names
    assert len(dotted & names) > 3


def test_start_when_it_says_make_run_then_that_is_memoryos_up() -> None:
    assert [b.text for b in BLOCKS if b.kind == "sh start"] == ["make run\n"]
    recipe = re.search(r"^run: .*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert recipe
    assert recipe[1] == "@exec $(BIN)/memoryos up"


def test_targets_when_named_then_make_has_them() -> None:
    for block in BLOCKS:
        for target in re.findall(r"^make ([a-z-]+)$", block.text, re.M):
            done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_provider_when_exported_as_shown_then_both_settings_are_set(reader: Reader) -> None:
    (block,) = [b for b in BLOCKS if b.kind == "sh settings"]
    assert block.text.endswith("make run\n")
    command = block.text.replace("make run", "memoryos settings --json")
    rows = {row["name"]: row for row in json.loads(reader.run(Block(block.line, "sh", command)))}
    assert rows["upstream.base_url"]["value"] == "https://api.openai.com/v1"
    assert rows["upstream.api_key"]["value"] == "********"


def test_settings_file_when_written_as_shown_then_it_is_read(tmp_path: Path) -> None:
    (block,) = [b for b in BLOCKS if b.kind == "toml settings"]
    file = tmp_path / "memoryos.toml"
    file.write_text(block.text)
    loaded = load_settings({"HOME": "/h"}, config=file)
    assert loaded.settings.auth.enabled
    assert loaded.settings.server.listen == "127.0.0.1:50052"


def test_settings_of_pages_when_written_as_shown_then_they_are_read(tmp_path: Path) -> None:
    blocks = [b for page, content in PAGES.items() for b in _blocks(page, content) if b.kind == "toml settings"]
    assert blocks
    for block in blocks:
        file = tmp_path / "memoryos.toml"
        file.write_text(block.text)
        loaded = load_settings({"HOME": "/h"}, config=file)
        assert loaded.settings != load_settings({"HOME": "/h"}).settings, block.place


def test_providers_of_pages_when_written_as_shown_then_they_are_read() -> None:
    blocks = [b for page, content in PAGES.items() for b in _blocks(page, content) if b.kind == "toml providers"]
    assert blocks
    for block in blocks:
        keys = dict.fromkeys(("OPENAI_API_KEY", "GROQ_API_KEY", "BERLIN_KEY"), "key")
        assert read_table(block.text, keys).default == "smart"


def test_routes_when_named_then_they_exist() -> None:
    templates = {re.sub(r"\{.*?\}", "{}", route.template) for method in load() for route in method.routes}
    text = "".join((README, *PAGES.values()))
    for verb, path in re.findall(r"`(GET|POST|PATCH|DELETE) (/v1/[^`\s?]*)", text):
        assert re.sub(r"\{.*?\}", "{}", path) in templates, (verb, path)


@pytest.mark.parametrize("page", [page for page, content in PAGES.items() if "```sh run" in content])
def test_page_when_followed_from_top_to_bottom_then_everything_works(page: str, reader: Reader) -> None:
    reader.up.start()
    reader.up.ready()
    printed = ""
    for block in _blocks(page, PAGES[page]):
        if block.kind.startswith("json"):
            _compare(block, printed)
        elif block.kind == "sh run":
            printed = reader.run(block)
            _judge(block, printed)


def test_readme_when_followed_from_top_to_bottom_then_everything_works(reader: Reader) -> None:
    printed = ""
    ran = 0
    for block in BLOCKS:
        if block.kind == "sh start":
            reader.up.start()
            reader.up.ready()
        elif block.kind.startswith("json"):
            _compare(block, printed)
        elif block.kind == "sh keys":
            create, up = block.text.splitlines()
            printed = reader.run(Block(block.line, "sh", create))
            reader.env["MEMORYOS_API_KEY"] = printed.split()[-1]
            reader.up.stop()
            assert up.startswith(".venv/bin/memoryos up ")
            reader.up.log.write_text("")
            reader.up.start(*up.split()[2:])
            reader.up.ready()
            assert reader.up.system.get("/v1/models")[0] == 401
        elif block.kind == "sh run grpcurl" and shutil.which("grpcurl") is None:
            continue  # the test below makes the same call
        elif " run" in block.kind:
            printed = reader.run(block)
            _judge(block, printed)
            ran += 1
    assert ran >= 9


def test_grpcurl_when_it_is_absent_then_the_same_call_by_reflection_answers(reader: Reader) -> None:
    import grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    (block,) = [b for b in BLOCKS if b.kind == "sh run grpcurl"]
    words = block.text.replace("\\\n", " ")
    header = re.search(r"-rpc-header '([^:]+): ([^']+)'", words)
    body = re.search(r"-d '([^']+)'", words)
    target = re.search(r"(127\S+) (\S+)/(\S+)\s*$", words)
    assert header
    assert body
    assert target
    reader.up.start()
    reader.up.ready()
    reader.up.system.post("/v1/memory/add", {"user_id": header[2], "role": "user", "content": "Coffee: black."})
    with grpc.insecure_channel(reader.here(target[1])) as channel:
        # As grpcurl does it: nothing of ours is known but what the server tells.
        database = ProtoReflectionDescriptorDatabase(channel)
        assert target[2] in database.get_services()
        pool = descriptor_pool.DescriptorPool()
        waiting = [database.FindFileContainingSymbol(target[2]).name]
        files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        while waiting:
            name = waiting.pop()
            if name not in files:
                files[name] = database.FindFileByName(name)
                waiting += files[name].dependency

        def add(name: str) -> None:
            for dependency in files[name].dependency:
                add(dependency)
            pool.Add(files[name])

        add(next(iter(files)))
        method = pool.FindServiceByName(target[2]).methods_by_name[target[3]]
        request = json_format.Parse(body[1], message_factory.GetMessageClass(method.input_type)())
        call = channel.unary_unary(
            f"/{target[2]}/{target[3]}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer = call(request, metadata=[(header[1].lower(), header[2])], timeout=20)
    assert answer.episodes[0].content == "Coffee: black."
