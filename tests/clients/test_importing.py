"""`memoryos import`: the readers on files, and the whole against the real system."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from memoryos.importing import streams
from memoryos.importing.formats import READERS, detect
from memoryos.importing.items import Item, Memory, Problem, Turn, Unreadable, moment, parts, short
from memoryos.importing.progress import Progress
from memoryos.importing.streams import Source, elements
from tests.system import System, free_port


def kept(path: Path, content: Any) -> Path:
    """A file with JSON, JSON lines (of a list of lines) or bytes."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def read(path: Path, name: str = "auto") -> list[Item]:
    source = Source(path)
    return list(READERS[detect(source) if name == "auto" else name](source))


def lines(*values: Any) -> str:
    return "\n".join(value if isinstance(value, str) else json.dumps(value) for value in values)


def node(key: str, parent: str | None, role: str, text: Any, **more: Any) -> dict[str, Any]:
    """A node of a ChatGPT conversation."""
    content = text if isinstance(text, dict) else {"content_type": "text", "parts": [text]}
    message = {"id": f"m-{key}", "author": {"role": role}, "content": content, "create_time": 1_700_000_000.5} | more
    return {"id": key, "parent": parent, "children": more.pop("children", []), "message": message}


def conversation(**more: Any) -> dict[str, Any]:
    nodes = [
        {"id": "root", "parent": None, "children": ["sys"], "message": None},
        node("sys", "root", "system", ""),
        node("q", "sys", "user", "Where do herons nest?"),
        node("call", "q", "assistant", "search(herons)", recipient="browser"),
        node("tool", "call", "tool", "herons: trees"),
        node("think", "tool", "assistant", {"content_type": "thoughts", "thoughts": []}),
        node("a", "think", "assistant", "In trees.", create_time=1_700_000_060),
        node("a2", "think", "assistant", "On the moon."),
        node("hidden", "a", "user", "secret", metadata={"is_visually_hidden_from_conversation": True}),
        node(
            "picture",
            "hidden",
            "user",
            {
                "content_type": "multimodal_text",
                "parts": [{"content_type": "image_asset_pointer"}, "这是什么？", {"text": "said aloud"}],
            },
        ),
    ]
    return {
        "conversation_id": "c-1",
        "title": "Herons",
        "create_time": 1_699_999_999,
        "current_node": "picture",
        "mapping": {n["id"]: n for n in nodes},
    } | more


def test_chatgpt_when_read_then_the_branch_that_was_last_seen_in_words(tmp_path: Path) -> None:
    turns = read(kept(tmp_path / "conversations.json", [conversation(), conversation(conversation_id=None, id="c-2")]))
    assert [t for t in turns if isinstance(t, Turn) and t.session_id == "c-1"] == turns[:3]
    assert [(t.role, t.content, t.event_id, t.session_id) for t in turns if isinstance(t, Turn)][:3] == [
        ("user", "Where do herons nest?", "m-q", "c-1"),
        ("assistant", "In trees.", "m-a", "c-1"),
        ("user", "这是什么？\nsaid aloud", "m-picture", "c-1"),
    ]
    assert isinstance(turns[1], Turn)
    assert turns[1].timestamp == datetime(2023, 11, 14, 22, 14, 20, tzinfo=UTC)
    assert {t.session_id for t in turns if isinstance(t, Turn)} == {"c-1", "c-2"}


def test_chatgpt_when_damaged_then_what_can_be_read_is_and_the_rest_is_named(tmp_path: Path) -> None:
    circle = {"x": node("x", "y", "user", "round"), "y": node("y", "x", "user", "and round")}
    broken = [
        {"title": "no mapping"},
        conversation(current_node="nowhere"),
        conversation(mapping=circle, current_node="x"),
        conversation(conversation_id=None),
        "nonsense",
    ]
    found = read(kept(tmp_path / "c.json", broken), "chatgpt")
    assert [p.where for p in found if isinstance(p, Problem)] == ["conversation 1", "conversation 4", "conversation 5"]
    said = [t.content for t in found if isinstance(t, Turn)]
    assert said[:1] == ["Where do herons nest?"]
    assert sorted(said[-2:]) == ["and round", "round"]


def test_chatgpt_when_it_is_an_archive_then_all_its_conversations_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("chat.html", "<html>")
        for n in range(2):
            archive.writestr(f"conversations-00{n}.json", json.dumps([conversation(conversation_id=f"c-{n}")]))
    turns = read(tmp_path / "export.zip")
    assert {t.session_id for t in turns if isinstance(t, Turn)} == {"c-0", "c-1"}
    source = Source(tmp_path / "export.zip")
    assert len(list(READERS["chatgpt"](source))) == 6
    assert source.position == source.size > 0
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(Unreadable, match=r"no conversations\.json"):
        Source(tmp_path / "other.zip")


def test_mem0_when_a_list_or_an_object_then_its_memories(tmp_path: Path) -> None:
    items = [
        {"id": "1", "memory": "Likes tea", "user_id": "ann", "metadata": {"x": [1]}, "created_at": "2026-01-01"},
        {"memory": "Plays the cello"},
        {"id": "3", "memory": "  "},
        "nonsense",
        {"memory": "x", "created_at": "yesterday"},
    ]
    whole = [items, {"results": items}, {"relations": [{"a": 1}], "version": 1.5, "memories": items, "next": None}]
    for n, content in enumerate(whole):
        found = read(kept(tmp_path / f"{n}.json", content))
        assert found[0] == Memory("memory 1", "Likes tea", "mem0:1", "ann", datetime(2026, 1, 1, tzinfo=UTC))
        assert isinstance(found[1], Memory)
        assert found[1].event_id.startswith("mem0:")
        assert [p.where for p in found[2:] if isinstance(p, Problem)] == ["memory 3", "memory 4", "memory 5"]


def test_jsonl_when_read_then_turns_and_problems_by_line(tmp_path: Path) -> None:
    text = lines(
        {
            "role": "user",
            "content": "hi",
            "timestamp": "2026-01-02T03:04:05+02:00",
            "session_id": "s",
            "name": "Ann",
            "event_id": "e",
        },
        "",
        {"role": "robot", "content": "x"},
        "{broken",
        {"role": "assistant", "content": "hello", "timestamp": 1_700_000_000_000},
        {"role": "user", "content": " "},
        {"role": "user", "content": "x", "timestamp": "yesterday"},
        {"role": "user", "content": "x", "session_id": 5},
        [],
    )
    found = read(kept(tmp_path / "t.jsonl", "\ufeff" + text + "\n"))
    assert found[0] == Turn("line 1", "hi", "user", "e", "s", "Ann", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC))
    assert [item.where for item in found] == [f"line {n}" for n in (1, 3, 4, 5, 6, 7, 8, 9)]
    assert [type(item) for item in found[1:]] == [Problem, Problem, Turn, Problem, Problem, Problem, Problem]


def test_jsonl_when_without_event_ids_then_they_stay_when_the_file_grows(tmp_path: Path) -> None:
    same = {"role": "user", "content": "again"}
    before = read(kept(tmp_path / "t.jsonl", lines(same, same)))
    after = read(kept(tmp_path / "t.jsonl", lines(same, same, same) + "\n"))
    assert after[:2] == before
    assert len({item.event_id for item in after if isinstance(item, Turn)}) == 3
    elsewhere = read(kept(tmp_path / "other.jsonl", lines(same)))
    assert isinstance(elsewhere[0], Turn)
    assert elsewhere[0].event_id not in {item.event_id for item in after if isinstance(item, Turn)}


def test_jsonl_when_not_utf_8_then_the_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    good = json.dumps({"role": "user", "content": "x"}).encode()
    found = read(kept(tmp_path / "t.jsonl", good + b'\n{"role": "user", "content": "\xff"}\n' + good))
    assert [(item.where, type(item)) for item in found] == [("line 1", Turn), ("line 2", Problem), ("line 3", Turn)]


@pytest.mark.parametrize("content", ["", "  \n", "[]", "hello", '{"a": 1}', '[{"a": 1}]', "[1", b"\xff\xfe"])
def test_detect_when_it_is_nothing_known_then_said(tmp_path: Path, content: Any) -> None:
    with pytest.raises(Unreadable, match="--format"):
        detect(Source(kept(tmp_path / "x", content)))


class Slow(io.RawIOBase):
    """Gives a few bytes at a time, so that every value is cut somewhere."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = io.BytesIO(data)
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        return self._data.read(self._size)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_elements_when_the_file_comes_in_pieces_then_the_same(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CHUNK", size)
    values = [{"a": '鸟\n\\"é😀', "b": [1, 2.5e10, -3, True, None]}, 12345678, "text", [], {}, [[[]]], 1.25, False]
    for ascii_only in (True, False):
        array = json.dumps(values, ensure_ascii=ascii_only, indent=1)
        assert list(elements(Slow(array.encode(), size))) == values  # type: ignore[arg-type]
        whole = '{"x": {"results": [1]}, "n": 12, "results": ' + array + ', "y": [1, 2]}'
        assert list(elements(Slow(whole.encode(), size), ("results",))) == values  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["[1, 2", "[1 2]", '[{"a": }, 2]', "[1,, 2]", '{"a": 1}', '{"a" 1}', '["\\x"]', "7", '["a', "[tru]", "[" * 10**6],
)
def test_elements_when_malformed_then_said(text: str) -> None:
    with pytest.raises(Unreadable):
        list(elements(io.BytesIO(text.encode()), ("results",)))


def test_elements_when_one_is_wrong_then_those_before_count_and_it_is_named(tmp_path: Path) -> None:
    text = '[{"id": 1, "memory": "a"}, {"id": 2, "memory": "b"}, {"id": 3, "memory": ]' + " " * 100
    reader = READERS["mem0"](Source(kept(tmp_path / "x", text)))
    assert [item.where for item in islice(reader, 2)] == ["memory 1", "memory 2"]
    with pytest.raises(Unreadable, match="element 3"):
        next(reader)


def test_parts_when_long_then_nothing_is_lost_and_ids_differ() -> None:
    text = "word " * 50_000
    pieces = list(parts(Turn("line 1", text, "user", "e")))
    assert "".join(piece.content for piece in pieces) == text
    assert max(len(piece.content) for piece in pieces) <= 100_000
    assert [piece.event_id for piece in pieces] == ["e", "e#2", "e#3"]
    assert [len(piece.content) for piece in parts(Turn("l", "鸟" * 250_000, "user", "e"))] == [100_000, 100_000, 50_000]


def test_short_when_an_id_is_too_long_then_one_that_follows_from_it() -> None:
    assert short("x" * 256) == "x" * 256
    assert short("x" * 257) == short("x" * 257) != short("y" * 257)
    assert len(short("x" * 1000)) <= 256


def test_moment_when_given_in_several_forms_then_utc() -> None:
    expected = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    for value in (1_700_000_000, 1_700_000_000_000, "2023-11-14T22:13:20", "2023-11-14T23:13:20+01:00"):
        assert moment(value) == expected
    assert moment(None) is None
    for bad in ("noon", True, [], 1e300, "2023-99-01"):
        with pytest.raises(ValueError, match="is no time"):
            moment(bad)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_when_on_a_terminal_then_a_bar_and_else_a_line_now_and_then() -> None:
    now = [0.0]
    out = Terminal()
    bar = Progress(out, lambda: now[0])
    for step in range(41):
        now[0] = step * 0.0625
        bar.show(step / 40, step * 50, 0)
    bar.end(1.0, 2000, 2)
    assert out.getvalue().count("\r") == 12  # every fifth of a second at most, and the end
    assert "[############............]  50%  1,000 sent, 800/s, 0:01 left" in out.getvalue()
    assert out.getvalue().endswith("100%  2,000 sent, 2 failed, 800/s\x1b[K\n")
    now[0], log = 0.0, io.StringIO()
    plain = Progress(log, lambda: now[0])
    for step in range(26):
        now[0] = float(step)
        plain.show(step / 100, step, 0)
    plain.end(0.25, 25, 0)
    assert log.getvalue() == "10%  10 sent, 1/s, 1:30 left\n20%  20 sent, 1/s, 1:20 left\n"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("importing")) as running:
        yield running


def imported(system: System, path: Path, user: str, *more: str, check: bool = True) -> dict[str, Any]:
    done = system.cli("import", str(path), "--user", user, "--json", *more, check=check)
    return dict(json.loads(done.stdout))


def said(system: System, user: str) -> list[tuple[str, str]]:
    _, found, _ = system.post("/v1/memory/retrieve", {"user_id": user, "query": "x"})
    return [(turn["role"], turn["content"]) for turn in found["short_term"]]


def test_import_when_a_conversation_then_remembered_in_order_and_once(system: System, tmp_path: Path) -> None:
    path = kept(tmp_path / "conversations.json", [conversation()])
    first = imported(system, path, "gpt")
    assert (first["format"], first["turns"], first["failed"], first["stopped"]) == ("chatgpt", 3, 0, "")
    again = imported(system, path, "gpt")
    assert (again["turns"], again["duplicates"]) == (0, 3)
    assert said(system, "gpt") == [
        ("user", "Where do herons nest?"),
        ("assistant", "In trees."),
        ("user", "这是什么？\nsaid aloud"),
    ]
    body = {"user_id": "gpt", "query": "Where do herons nest?"}
    episodes = {episode["event_id"]: episode for episode in system.post("/v1/memory/retrieve", body)[1]["episodes"]}
    assert (episodes["m-q"]["session_id"], episodes["m-q"]["timestamp"]) == ("c-1", "2023-11-14T22:13:20.500000Z")


def test_import_when_many_sessions_then_each_in_order(system: System, tmp_path: Path) -> None:
    rows = [{"role": "user", "content": f"note {n} of {n % 5}", "session_id": f"s{n % 5}"} for n in range(400)]
    report = imported(system, kept(tmp_path / "many.jsonl", lines(*rows)), "many", "--concurrency", "16")
    assert (report["read"], report["turns"]) == (400, 400)
    for session in range(5):
        _, found, _ = system.call("GET", f"/v1/memory/sessions/s{session}?user_id=many&page_size=100")
        contents = [turn["content"] for turn in found["turns"]]
        assert contents == [f"note {n} of {session}" for n in range(session, 400, 5)]


def test_import_when_lines_are_wrong_then_they_are_named_and_the_others_imported(
    system: System, tmp_path: Path
) -> None:
    text = lines({"role": "user", "content": "good"}, "{", {"role": "user", "content": "good too"})
    path = kept(tmp_path / "some.jsonl", text)
    done = system.cli("import", str(path), "--user", "some", check=False)
    assert done.returncode == 1
    assert "imported 2 turns, 1 failed" in done.stdout
    assert "line 2: it is not valid JSON" in done.stdout
    assert [content for _, content in said(system, "some")] == ["good", "good too"]


def test_import_when_an_event_id_has_other_content_then_that_line_fails(system: System, tmp_path: Path) -> None:
    rows = [{"role": "user", "content": text, "event_id": "e"} for text in ("first", "second")]
    report = imported(system, kept(tmp_path / "c.jsonl", lines(*rows)), "conflict", check=False)
    assert (report["turns"], report["failed"]) == (1, 1)
    assert report["errors"][0]["where"] == "line 2"
    assert "event_id_conflict" in report["errors"][0]["error"]


def test_import_when_mem0_then_its_memories_are_memories_and_twice_is_once(system: System, tmp_path: Path) -> None:
    items = [
        {
            "id": f"m{n}",
            "memory": f"Ann owns {n} herons",
            "user_id": "mem",
            "created_at": f"2025-01-{n + 1:02}T10:00:00Z",
        }
        for n in range(30)
    ]
    path = kept(tmp_path / "mem0.json", {"results": items})
    for says in ("imported 30 memories in", "imported 0 memories, 30 there already in"):
        done = system.cli("import", str(path))  # the file says whose they are
        assert f"mem0: {says}" in done.stdout
    _, found, _ = system.call("GET", "/v1/memories?memory_type=fact&page_size=100", headers={"X-User-ID": "mem"})
    assert found["data"]["total"] == 30
    newest_first = [(item["memory"], item["created_at"]) for item in reversed(items)]
    assert [(m["content"], m["created_at"]) for m in found["data"]["memories"]] == newest_first
    assert all("duplicate" not in m for m in found["data"]["memories"])


def test_import_when_dry_then_nothing_is_sent(system: System, tmp_path: Path) -> None:
    path = kept(tmp_path / "dry.jsonl", lines({"role": "user", "content": "x"}, "{"))
    report = imported(system, path, "dry", "--dry-run", "--server", f"127.0.0.1:{free_port()}", check=False)
    assert (report["dry_run"], report["turns"], report["failed"]) == (True, 1, 1)
    assert said(system, "dry") == []


def test_import_when_it_cannot_be_done_then_said_in_a_line(system: System, tmp_path: Path) -> None:
    path = kept(tmp_path / "x.jsonl", lines({"role": "user", "content": "x"}))
    done = system.cli("import", str(path), "--server", f"127.0.0.1:{free_port()}", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "does not answer" in done.stderr
    assert system.cli("import", str(tmp_path / "missing"), check=False).returncode == 2
    done = system.cli("import", str(kept(tmp_path / "odd", "hello")), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--format" in done.stderr


def test_import_when_the_server_is_killed_midway_then_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    rows = [{"role": "user", "content": f"note {n}", "session_id": f"s{n % 3}"} for n in range(400)]
    path = kept(tmp_path / "t.jsonl", lines(*rows))
    with System(tmp_path / "home") as system:
        command = [sys.executable, "-m", "memoryos.cli", "import", str(path), "--user", "ann", "--json"]
        running = subprocess.Popen(command, env=system.env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + 60
        while len(said(system, "ann")) < 20:
            assert time.monotonic() < end
            assert running.poll() is None
            time.sleep(0.05)
        system.kill(bridge=False, group=True)
        system.start()
        out, _ = running.communicate(timeout=100)
        report = json.loads(out)
        assert (report["failed"], report["stopped"]) == (0, "")
        assert report["turns"] + report["duplicates"] == 400
        contents = []
        for session in range(3):
            token = ""
            while True:
                page = f"/v1/memory/sessions/s{session}?user_id=ann&page_size=100&page_token={token}"
                _, found, _ = system.call("GET", page)
                contents.append([turn["content"] for turn in found["turns"]])
                token = found["next_page_token"]
                if not token:
                    break
        assert sorted(text for page in contents for text in page) == sorted(row["content"] for row in rows)


def test_import_when_interrupted_then_run_again_it_goes_on(system: System, tmp_path: Path) -> None:
    rows = [{"role": "user", "content": f"note {n}"} for n in range(300)]
    path = kept(tmp_path / "stop.jsonl", lines(*rows))
    command = [sys.executable, "-m", "memoryos.cli", "import", str(path), "--user", "stop"]
    running = subprocess.Popen(command, env=system.env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not said(system, "stop"):
        assert time.monotonic() < end
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert (running.returncode, told.strip().splitlines()[-1][:26]) == (130, "Run the same command again")
    report = imported(system, path, "stop")
    assert report["turns"] + report["duplicates"] == 300
    assert report["duplicates"] > 0
    assert [content for _, content in said(system, "stop")] == [f"note {n}" for n in range(280, 300)]
