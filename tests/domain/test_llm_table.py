"""The file of providers: what it may say, and what is said of one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoryos.settings import UpstreamSettings
from memoryos_server.tools.llm.provider import matches
from memoryos_server.tools.llm.reloading import catalog_of
from memoryos_server.tools.llm.table import TableError, read_table


@pytest.mark.parametrize(
    ("name", "pattern", "is_one"),
    [
        ("gpt-4o", "gpt-*", True),
        ("a[1]", "a[1]", True),
        ("a1", "a[1]", False),
        ("xgpt-4", "gpt-*", False),
        ("a.b", "a?b", False),
    ],
)
def test_pattern_when_it_has_stars_then_they_alone_stand_for_anything(name: str, pattern: str, is_one: bool) -> None:
    assert matches(name, (pattern,)) == is_one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid TOML"),
        ("[provider.a]", "provider: Extra inputs are not permitted"),
        ("[providers.a]\nkind = 'groqq'", "providers.a.kind: there is no groqq; known are openai"),
        ("[providers.a]\napi_key = 'k'", "providers.a.base_url: Field required"),
        ("[providers.groq]", "providers.groq.api_key_env: GROQ_API_KEY is not set"),
        ("[providers.ollama]\nrenam = {}", "providers.ollama.renam: Extra inputs"),
        ("[providers.ollama]\nbase_url = 'ftp://x'", "providers.ollama.base_url: it must be an http or https URL"),
        ("[providers.'a/b']\nbase_url = 'http://x'", "without a slash"),
        ("[providers.a]\nbase_url = 'http://x'\napi_key = 'k'\napi_key_env = 'K'", "exclude each other"),
        ("", "it names no provider"),
        ("retries = " + "9" * 5000, "not valid TOML"),
        ("x = " + "[" * 100_000, "not valid TOML"),
        ("[providers.a]\nkind = ['a']", "providers.a.kind: it must be a text"),
        ("[providers.a]\nbase_url = 'http://[::1/v1'", "providers.a.base_url: Invalid IPv6 URL"),
        ("[providers.a]\nbase_url = 'http://x:99999'", "providers.a.base_url: Port out of range"),
        ("[providers.a]\nbase_url = 'http://me:pw@x'", "a key belongs into api_key_env"),
        ("[providers.a]\nbase_url = 'http://x'\napi_key = \"a\\nb\"", "the key is not printable ASCII"),
        ("[providers.a]\nbase_url = 'http://x'\nauth = 'host'", "host is no header that can be set"),
        ("[providers.a]\nbase_url = 'http://x'\nheaders = {x = \"a\\nb\"}", "providers.a.headers.x: a header is"),
        ("[providers.ollama]\n[models.'q*']\naliases = ['q']\ndeployments = ['ollama']", "a pattern has none"),
        ("retries = 11", "retries: Input should be less than or equal to 10"),
        ("[models.m]\ndeployments = []", "models.m.deployments: List should have at least 1 item"),
        ("[providers.ollama]\n[models.m]\ndeployments = ['x/y']", "models.m.deployments.0: there is no provider x"),
        ("[providers.ollama]\n[models.m]\ndeployments = ['ollama']", "models.m.deployments.0: it names no model"),
        (
            "[providers.ollama]\nmodels = []\n[models.m]\ndeployments = ['ollama/x']\nfallbacks = ['n']",
            "models.m.fallbacks: nobody serves n",
        ),
        ("default = 'd'\n[providers.ollama]\nmodels = []", "default: nobody serves d"),
        (
            "[providers.ollama]\n[models.m]\ndeployments = ['ollama/x']\naliases = ['m']",
            "models.m.aliases: m is the name of another model",
        ),
    ],
)
def test_table_when_something_is_wrong_then_it_is_named(text: str, message: str) -> None:
    with pytest.raises(TableError) as caught:
        read_table(text, {})
    assert message in str(caught.value)


def test_table_when_wrong_then_no_key_is_in_the_message() -> None:
    with pytest.raises(TableError) as caught:
        read_table("[providers.groq]\napi_key = ['sk-secret']", {})
    assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in repr(read_table("[providers.groq]\napi_key = 'sk-secret'", {}))


def test_catalog_when_the_file_is_not_there_then_the_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"upstream.providers_file: .*none.toml: No such file"):
        catalog_of(UpstreamSettings(providers_file=str(tmp_path / "none.toml")))


def test_catalog_when_there_are_settings_and_a_file_then_the_settings_provider_comes_last(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("[providers.ollama]")
    catalog = catalog_of(UpstreamSettings(base_url="https://api.groq.com/openai/v1", providers_file=str(file)))
    assert list(catalog.providers) == ["ollama", "upstream"]
    assert "logprobs" in catalog.providers["upstream"].dialect.drop
