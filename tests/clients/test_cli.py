from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import memoryos
from memoryos.cli import split_flags
from memoryos.settings import SettingsError, known, load
from memoryos.up import environment
from tests.stores.qdrant_fixtures import QdrantServer
from tests.system import free_port

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command in an empty home."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("MEMORYOS_", "OPENAI_", "XDG_"))}

    def call(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "memoryos.cli", *arguments]
        whole = {**keep, "HOME": str(tmp_path), **env}
        return subprocess.run(command, env=whole, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return call


def _free() -> list[str]:
    return [f"--{name}=127.0.0.1:{free_port()}" for name in ("server-listen", "bridge-listen", "server-metrics-listen")]


def test_flags_when_mixed_with_a_command_then_they_are_taken_out() -> None:
    line = ["--auth-enabled", "keys", "create", "--server-listen", "h:1", "--user", "ann", "--insecure=false"]
    flags, config, rest = split_flags([*line, "--config", "x.toml", "--", "--insecure"], known({}))
    assert flags == {"auth.enabled": "true", "server.listen": "h:1", "insecure": "false"}
    assert config == "x.toml"
    assert rest == ["keys", "create", "--user", "ann", "--", "--insecure"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--server-listen"], "--server-listen needs a value"),
        (["--config"], "--config needs a value"),
        (["--auth-admin-key=k-1"], "MEMORYOS_AUTH__ADMIN_KEY_FILE"),
    ],
)
def test_flags_when_wrong_then_the_error_says_what_to_do(line: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        split_flags(line, known({}))
    assert "k-1" not in str(caught.value)


def test_version_when_settings_are_broken_then_it_is_printed_all_the_same(run: Run) -> None:
    done = run("version", MEMORYOS_NO__SUCH="1")
    assert (done.returncode, done.stdout) == (0, f"memoryos {memoryos.__version__}\n")


@pytest.mark.parametrize("command", ["settings", "up", "serve", "bridge"])
def test_command_when_a_setting_is_wrong_then_it_exits_2_with_one_line(run: Run, command: str) -> None:
    done = run(command, "--server-reflection=maybe")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "memoryos: server.reflection (flag --server-reflection): 'maybe' is not a bool\n"


def test_command_when_unknown_then_it_exits_2(run: Run) -> None:
    assert run("nonsense").returncode == 2
    assert run().returncode == 2
    assert run("settings", "--serv", "x").returncode == 2  # no shortened flags


def test_help_when_asked_then_the_commands_of_every_part_are_there(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for command in ("up", "doctor", "settings", "version", "serve", "keys", "audit", "bridge"):
        assert f"    {command} " in done.stdout


def test_settings_when_listed_then_value_source_and_default_are_shown_and_secrets_are_not(run: Run) -> None:
    env = {"MEMORYOS_AUTH__ADMIN_KEY": "hunter2-hunter2-hunter2", "MEMORYOS_DATA_DIR": "/srv/m"}
    done = run("settings", "--json", "--log-level", "debug", **env)
    assert done.returncode == 0
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows.keys() == {item.name for item in known()}
    assert rows["log.level"] | {"value": "debug", "source": "flag --log-level", "default": "info"} == rows["log.level"]
    assert rows["data_dir"]["source"] == "environment MEMORYOS_DATA_DIR"
    assert (rows["auth.admin_key"]["value"], rows["bridge.secret"]["value"]) == ("********", "")
    table = run("settings", **env)
    assert "hunter2" not in done.stdout + table.stdout
    line = next(line for line in table.stdout.splitlines() if line.startswith("data_dir "))
    assert line.split()[1] == "/srv/m"
    assert line.endswith("environment MEMORYOS_DATA_DIR")


def test_warning_when_a_name_only_looks_like_a_setting_then_it_goes_to_standard_error(run: Run) -> None:
    done = run("settings", "--json", MEMORYOS_SERVICE_HOST="10.0.0.1")
    assert done.returncode == 0
    assert "MEMORYOS_SERVICE_HOST" in done.stderr
    json.loads(done.stdout)


def test_output_when_its_reader_leaves_then_there_is_no_trace(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memoryos.cli", "settings", "--json"]
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MEMORYOS_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=bare)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    trace = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert trace == b""


def _findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_doctor_when_all_is_well_then_it_exits_0_and_makes_nothing(run: Run, tmp_path: Path) -> None:
    done = run("doctor", "--json", *_free())
    findings = _findings(done)
    assert done.returncode == 0, done.stdout
    for name in (
        "python",
        "server",
        "bridge",
        "valkey",
        "vector engine",
        "settings",
        "data directory",
        "server.listen",
    ):
        assert findings[name]["state"] == "ok", name
    assert findings["upstream"]["hint"] == "set OPENAI_BASE_URL and OPENAI_API_KEY"
    assert list(tmp_path.iterdir()) == []


def test_doctor_when_settings_are_wrong_then_it_says_so_and_goes_on_as_far_as_it_can(run: Run) -> None:
    done = run("doctor", "--json", "--auth-enabled=perhaps")
    findings = _findings(done)
    assert done.returncode == 1
    assert findings["settings"]["state"] == "broken"
    assert "auth.enabled" in findings["settings"]["text"]
    assert findings["valkey"]["state"] == "ok"


def test_doctor_when_an_address_is_taken_by_something_else_then_it_is_broken(run: Run) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run("doctor", "--json", *_free(), "--server-listen", address)
    assert done.returncode == 1
    assert _findings(done)["server.listen"]["state"] == "broken"
    assert address in _findings(done)["server.listen"]["text"]


@pytest.mark.parametrize(
    ("text", "state", "says"), [("", "ok", "groq"), ("modles = []", "broken", "groq.modles: Extra")]
)
def test_doctor_when_there_is_a_file_of_providers_then_it_is_looked_at(
    run: Run, tmp_path: Path, text: str, state: str, says: str
) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(f'[providers.groq]\napi_key = "sk-secret"\n{text}')
    done = run("doctor", "--json", *_free(), "--upstream-providers-file", str(file))
    finding = _findings(done)["providers"]
    assert finding["state"] == state
    assert says in finding["text"]
    assert "upstream" not in _findings(done)
    assert "sk-secret" not in done.stdout


def test_doctor_when_the_key_directory_lies_in_the_data_directory_then_it_is_broken(run: Run, tmp_path: Path) -> None:
    done = run("doctor", *_free(), "--data-dir", str(tmp_path / "d"), "--security-key-dir", str(tmp_path / "d" / "k"))
    assert done.returncode == 1
    assert "lies inside the data directory" in done.stdout


def test_doctor_when_a_qdrant_is_set_then_it_is_looked_at_and_the_key_is_shown_nowhere(
    run: Run, tmp_path: Path
) -> None:
    server = QdrantServer(tmp_path / "qdrant", "--api-key", "right-right-right").start()
    try:
        env = {"MEMORYOS_QDRANT__URL": server.url}
        good = run("doctor", "--json", *_free(), **env, MEMORYOS_QDRANT__API_KEY="right-right-right")
        assert good.returncode == 0, good.stdout
        assert _findings(good)["qdrant"]["state"] == "ok"
        bad = run("doctor", "--json", *_free(), **env, MEMORYOS_QDRANT__API_KEY="wrong-wrong-wrong")
        assert bad.returncode == 1
        assert "set qdrant.api_key" in _findings(bad)["qdrant"]["hint"]
        assert "wrong-wrong" not in bad.stdout + bad.stderr
    finally:
        server.stop()
    away = run("doctor", "--json", *_free(), **env)
    assert away.returncode == 1
    assert "cannot be reached" in _findings(away)["qdrant"]["text"]
    assert "qdrant" not in _findings(run("doctor", "--json", *_free()))


class _Provider(BaseHTTPRequestHandler):
    status = 200
    seen: list[str | None] = []  # noqa: RUF012  # one provider at a time

    def do_GET(self) -> None:
        self.seen.append(self.headers["Authorization"])
        self.send_response(self.status if self.path == "/v1/models" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Provider)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()
    _Provider.seen.clear()


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (401, "warning"), (404, "ok")])
def test_doctor_when_a_provider_is_set_then_it_is_asked_with_the_key(
    run: Run, provider: str, monkeypatch: pytest.MonkeyPatch, status: int, state: str
) -> None:
    monkeypatch.setattr(_Provider, "status", status)
    done = run("doctor", "--json", *_free(), OPENAI_BASE_URL=provider, OPENAI_API_KEY="sk-doctor")
    assert _findings(done)["upstream"]["state"] == state
    assert _Provider.seen == ["Bearer sk-doctor"]
    assert "sk-doctor" not in done.stdout
    assert done.returncode == 0


def test_doctor_when_the_provider_does_not_answer_then_it_does_not_wait_long(run: Run) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        done = run("doctor", "--json", *_free(), OPENAI_BASE_URL=url)
    assert _findings(done)["upstream"]["state"] == "warning"


def test_environment_when_flags_were_given_then_the_children_get_them_and_one_secret() -> None:
    environ = {"HOME": "/h", "PATH": "/bin", "MEMORYOS_SERVICE_HOST": "x", "MEMORYOS_LOG__LEVEL": "info"}
    flags = {"log.level": "debug", "auth.enabled": "true", "bridge.cors_origins": "http://a,http://b"}
    made = environment(load(environ, flags), "/etc/m.toml", environ)
    assert made["MEMORYOS_CONFIG"] == "/etc/m.toml"
    assert "MEMORYOS_SERVICE_HOST" not in made
    assert len(made["MEMORYOS_BRIDGE__SECRET"]) == 64
    again = environment(load(environ, flags), None, environ)
    assert again["MEMORYOS_BRIDGE__SECRET"] != made["MEMORYOS_BRIDGE__SECRET"]
    del made["MEMORYOS_CONFIG"]
    settings = load(made).settings
    assert (settings.log.level, settings.auth.enabled) == ("debug", True)
    assert settings.bridge.cors_origins == ("http://a", "http://b")


def test_environment_when_a_secret_is_set_then_it_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("of-a-file")
    environ = {"HOME": "/h", "MEMORYOS_BRIDGE__SECRET_FILE": str(file)}
    assert load(environment(load(environ), None, environ)).settings.bridge.secret == "of-a-file"
