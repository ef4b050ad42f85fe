from __future__ import annotations

from pathlib import Path

import pytest

from memoryos.addresses import is_loopback, split_address
from memoryos.settings import SettingsError, known, load

HOME = {"HOME": "/home/ann"}


def test_sources_when_all_three_name_a_setting_then_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text('[server]\nlisten = "127.0.0.1:1"\n[bridge]\nlisten = "127.0.0.1:2"\n[log]\nlevel = "debug"\n')
    env = {**HOME, "MEMORYOS_SERVER__LISTEN": "127.0.0.1:3", "MEMORYOS_BRIDGE__LISTEN": "127.0.0.1:4"}
    loaded = load(env, {"server.listen": "127.0.0.1:5"}, file)
    assert loaded.settings.server.listen == "127.0.0.1:5"
    assert loaded.settings.bridge.listen == "127.0.0.1:4"
    assert loaded.settings.log.level == "debug"
    assert loaded.sources["server.listen"] == "flag --server-listen"
    assert loaded.sources["bridge.listen"] == "environment MEMORYOS_BRIDGE__LISTEN"
    assert loaded.sources["log.level"] == f"file {file}"
    assert loaded.sources["insecure"] == "default"


def test_directories_when_the_environment_has_xdg_then_they_follow_it() -> None:
    assert load(HOME).settings.data_dir == "/home/ann/.local/share/memoryos"
    xdg = {**HOME, "XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "/c", "XDG_CACHE_HOME": "/k"}
    settings = load(xdg).settings
    assert (settings.data_dir, settings.security.key_dir) == ("/d/memoryos", "/c/memoryos/keys")
    assert settings.embedding.cache_dir == "/k/memoryos"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MEMORYOS_AUTH__ENABLED", "maybe", "auth.enabled"),
        ("MEMORYOS_SERVER__GRACE_SECONDS", "-1", "server.grace_seconds"),
        ("MEMORYOS_SERVER__GRACE_SECONDS", "inf", "server.grace_seconds"),
        ("MEMORYOS_SERVER__GRACE_SECONDS", "nan", "server.grace_seconds"),
        ("MEMORYOS_EMBEDDING__THREADS", "1.5", "embedding.threads"),
        ("MEMORYOS_LOG__LEVEL", "loud", "debug, info, warning, error"),
        ("MEMORYOS_AUTH__ENABLE", "true", "MEMORYOS_AUTH__ENABLE"),
        ("MEMORYOS_AUTH__ADMIN_KEY_FILE", "/nowhere/key", "/nowhere/key"),
    ],
)
def test_environment_when_it_is_wrong_then_the_error_names_it(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says.replace(".", r"\.")):
        load({**HOME, name: value})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[auth]\nenable = true\n", "auth.enable"),
        ("auth = true\n", "unknown setting auth"),
        ("[embedding]\nthreads = 1.5\n", "embedding.threads"),
        ("[bridge]\ncors_origins = 5\n", "bridge.cors_origins"),
        ("[auth\n", "TOML"),
        (b"[log]\nlevel = '\xff'\n", "TOML"),
    ],
)
def test_file_when_it_is_wrong_then_the_error_names_it(tmp_path: Path, text: str | bytes, says: str) -> None:
    file = tmp_path / "m.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError, match=says):
        load(HOME, config=file)


def test_file_when_there_is_none_of_the_name_then_the_error_names_it() -> None:
    with pytest.raises(SettingsError, match=r"/nowhere/m\.toml"):
        load(HOME, config="/nowhere/m.toml")


def test_environment_when_a_name_only_looks_like_ours_then_it_warns() -> None:
    loaded = load({**HOME, "MEMORYOS_SERVICE_HOST": "10.0.0.1"})
    assert len(loaded.warnings) == 1
    assert "MEMORYOS_SERVICE_HOST" in loaded.warnings[0]


def test_secret_when_read_from_a_file_then_it_is_shown_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("k-e-y-1234567890\n")
    loaded = load({**HOME, "MEMORYOS_AUTH__ADMIN_KEY_FILE": str(file)})
    assert loaded.settings.auth.admin_key == "k-e-y-1234567890"
    assert "k-e-y" not in repr(loaded)


def test_secret_when_malformed_then_the_error_does_not_show_it() -> None:
    item = next(i for i in known(HOME) if i.name == "security.master_key")
    assert item.flag == ""
    assert "hunter2" not in repr(load({**HOME, item.env: "hunter2"}))


def test_openai_variables_when_our_own_are_absent_then_they_set_the_upstream() -> None:
    env = {**HOME, "OPENAI_BASE_URL": "http://one/v1", "OPENAI_API_KEY": "k"}
    assert load(env).settings.upstream.base_url == "http://one/v1"
    env["MEMORYOS_UPSTREAM__BASE_URL"] = "http://two/v1"
    settings = load(env).settings
    assert (settings.upstream.base_url, settings.upstream.api_key) == ("http://two/v1", "k")


def test_settings_when_listed_then_each_says_what_it_is_for() -> None:
    names = [item.name for item in known(HOME)]
    assert len(names) == len(set(names))
    assert [item.name for item in known(HOME) if not item.doc.endswith(".") or not item.doc[0].isupper()] == []


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost", "unix:")),
        *((host, False) for host in ("0.0.0.0", "::", "127.example.com", "10.0.0.1", "example.com")),  # noqa: S104
    ],
)
def test_loopback_when_a_host_is_given_then_only_this_machine_counts(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("address", ["", "localhost", ":80", "h:", "h:x", "h:70000"])
def test_address_when_malformed_then_the_error_names_the_setting(address: str) -> None:
    with pytest.raises(SettingsError, match=r"server\.listen"):
        split_address(address, "server.listen")


def test_address_when_it_is_ipv6_then_the_brackets_go() -> None:
    assert split_address("[::1]:80", "x") == ("::1", 80)
