"""No secret's value is ever shown: not by repr, by `memoryos settings` or `doctor`, by messages, or in logs."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from memoryos.settings import SettingsError, known, load
from tests.system import System

SECRETS = [item for item in known({"HOME": "/h"}) if item.secret]
NAMES = {
    "bridge.secret",
    "auth.admin_key",
    "upstream.api_key",
    "embedding.api_key",
    "redis.url",
    "redis.password",
    "redis.sentinel_password",
    "security.master_key",
    "qdrant.api_key",
}
SUSPECT = ("secret", "password", "api_key", "admin_key", "master_key", "token")
HARMLESS = {"memory.inject_tokens"}


def test_settings_when_a_name_sounds_like_a_secret_then_it_is_one() -> None:
    assert {item.name for item in SECRETS} >= NAMES
    plain = [item.name for item in known({"HOME": "/h"}) if not item.secret and item.name not in HARMLESS]
    assert [name for name in plain if any(word in name.rpartition(".")[2] for word in SUSPECT)] == []


@pytest.mark.parametrize("item", SECRETS, ids=lambda item: item.name)
def test_secret_when_set_then_repr_hides_it_and_it_has_no_flag(item: object, tmp_path: Path) -> None:
    assert any(item is one for one in SECRETS)
    name, env = item.name, item.env  # type: ignore[attr-defined]
    value = secrets.token_hex(32)
    file = tmp_path / "secret"
    file.write_text(f"{value}\n")
    for given in ({env: value}, {f"{env}_FILE": str(file)}):
        loaded = load({"HOME": "/h", **given})
        found = loaded.settings
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value
        assert value not in repr(loaded) + str(loaded.settings)
    assert item.flag == ""  # type: ignore[attr-defined]
    toml = tmp_path / "m.toml"
    section, _, field = name.partition(".")
    toml.write_text(f'[{section}]\n{field} = ["{value}"]\n')
    with pytest.raises(SettingsError) as caught:
        load({"HOME": "/h"}, config=toml)
    assert name in str(caught.value)
    assert value not in str(caught.value)


def test_secrets_when_all_are_set_then_no_command_and_no_log_shows_one(tmp_path: Path) -> None:
    values = {name: secrets.token_hex(32) for name in NAMES}
    # A place where nobody listens, so that the start fails and says why.
    values["redis.url"] = f"redis://ann:{values['redis.password']}@127.0.0.1:1/0"
    env = {f"MEMORYOS_{name.replace('.', '__').upper()}": value for name, value in values.items()}
    env |= {"MEMORYOS_AUTH__ENABLED": "true", "MEMORYOS_QDRANT__URL": "http://127.0.0.1:1"}
    env |= {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "MEMORYOS_LOG__LEVEL": "debug"}
    system = System(tmp_path, env)
    told = ""
    for command in (
        ("settings",),
        ("settings", "--json"),
        ("doctor",),
        ("doctor", "--json"),
        ("keys", "list"),
        ("serve",),
    ):
        done = system.cli(*command, check=False)
        assert done.stdout + done.stderr
        told += done.stdout + done.stderr
    assert [name for name, value in values.items() if value in told] == []
    assert "********" in told
