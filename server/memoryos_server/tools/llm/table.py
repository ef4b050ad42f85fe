"""Reads a file of providers (TOML) into a catalog. Whatever it does not understand it names, rather than pass it over."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memoryos_server.tools.llm.catalog import Catalog
from memoryos_server.tools.llm.provider import Deployment, Dialect, Provider, Route

_Seconds = Annotated[float, Field(gt=0, le=3600)]


_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept", "accept-encoding"}
)


class TableError(ValueError):
    """A file of providers cannot be used; the message says where and why."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Words(_Strict):
    rename: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}
    drop: list[str] = []
    allow: list[str] | None = None
    drop_of_messages: list[str] = []
    hoists_system: bool = False

    def dialect(self) -> Dialect:
        return Dialect(
            rename=self.rename,
            values=self.values,
            drop=frozenset(self.drop),
            allow=None if self.allow is None else frozenset(self.allow),
            drop_of_messages=frozenset(self.drop_of_messages),
            hoists_system=self.hoists_system,
        )


class _Rule(_Words):
    models: list[str]


class _Provider(_Words):
    kind: str = ""
    base_url: str
    api: Literal["openai", "anthropic"] = "openai"
    api_key: str = Field("", repr=False)
    api_key_env: str = ""
    auth: str = Field("bearer", pattern=r"^[A-Za-z0-9-]+$")
    headers: dict[str, str] = {}
    rules: list[_Rule] = []
    models: list[str] | None = None
    connect_timeout_seconds: _Seconds = 5.0
    first_byte_timeout_seconds: _Seconds = 60.0
    idle_timeout_seconds: _Seconds = 60.0


class _Deployment(_Strict):
    provider: str
    model: str = ""
    weight: float = Field(1.0, gt=0)


class _Model(_Strict):
    deployments: list[str | _Deployment] = Field(min_length=1)
    aliases: list[str] = []
    fallbacks: list[str] = []
    context_fallbacks: list[str] = []


class _Table(_Strict):
    default: str = ""
    retries: int = Field(2, ge=0, le=10)
    providers: dict[str, _Provider] = {}
    models: dict[str, _Model] = {}


@lru_cache(1)
def known() -> dict[str, dict[str, Any]]:
    """The providers that come along, by kind, as a file would say them."""
    return tomllib.loads(resources.files(__package__).joinpath("known.toml").read_text("utf-8"))


def kind_of(base_url: str) -> str:
    """The kind of the provider at an address; "" if it is none that we know."""
    try:
        host = urlsplit(base_url).hostname
    except ValueError:
        return ""
    if host and host.endswith(".openai.azure.com"):
        return "azure"
    addresses = [(kind, str(one.get("base_url", ""))) for kind, one in known().items() if kind != "ollama"]
    return next((kind for kind, address in addresses if host and urlsplit(address).hostname == host), "")


def read_table(text: str, environment: Mapping[str, str], also: Mapping[str, Provider] | None = None) -> Catalog:
    """The catalog of a file.

    Args:
        text: What stands in it.
        environment: Where the keys are that it names.
        also: Providers that there are besides, by name.

    Raises:
        TableError: It is no TOML, has a member that is unknown or of the wrong kind, or names what is not there.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"it is not valid TOML: {error}") from None
    try:
        table = _Table.model_validate(_completed(raw))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise TableError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if not table.providers:
        raise TableError("it names no provider")
    providers = {name: _provider(name, one, environment) for name, one in table.providers.items()}
    providers = {**providers, **{name: one for name, one in (also or {}).items() if name not in providers}}
    routes = {name: _route(name, one, providers) for name, one in table.models.items()}
    aliases: dict[str, str] = {}
    for name, one in table.models.items():
        if one.aliases and "*" in name:
            raise TableError(f"models.{name}.aliases: a pattern has none")
        for alias in one.aliases:
            if alias in table.models or alias in aliases:
                raise TableError(f"models.{name}.aliases: {alias} is the name of another model")
            aliases[alias] = name
    catalog = Catalog(providers, routes, aliases, table.default, table.retries)
    for name, one in table.models.items():
        for member, chain in (("fallbacks", one.fallbacks), ("context_fallbacks", one.context_fallbacks)):
            for other in chain:
                _check_served(catalog, other, f"models.{name}.{member}")
    if table.default:
        _check_served(catalog, table.default, "default")
    return catalog


def of_kind(kind: str, provider: Provider) -> Provider:
    """A provider with what is known of its kind: its interface, its words, and how it is told who asks."""
    one = _Provider.model_validate({"base_url": "", **known()[kind]})
    return replace(provider, api=one.api, auth=one.auth, headers=one.headers, dialect=one.dialect(), rules=_rules(one))


def _completed(raw: dict[str, Any]) -> dict[str, Any]:
    """A table in which each provider of a known kind has what is known of it."""
    kinds = known()
    providers = raw.get("providers")
    if not isinstance(providers, dict):
        return raw
    completed = {}
    for name, one in providers.items():
        kind = one.get("kind", name) if isinstance(one, dict) else name
        if not isinstance(kind, str):
            raise TableError(f"providers.{name}.kind: it must be a text")
        if isinstance(one, dict) and "kind" in one and kind not in kinds:
            raise TableError(f"providers.{name}.kind: there is no {kind}; known are {', '.join(kinds)}")
        about = dict(kinds.get(kind, {}))
        if isinstance(one, dict) and ("api_key" in one or one.get("auth") == "none"):
            about.pop("api_key_env", None)
        completed[name] = {**about, **one, **_both(about, one)} if isinstance(one, dict) else one
    return {**raw, "providers": completed}


def _both(known_of: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a file adds to what is known, rather than replace it: headers, and rules, of which the later count more."""
    made: dict[str, Any] = {}
    if isinstance(own.get("headers"), dict):
        made["headers"] = {**known_of.get("headers", {}), **{name.lower(): one for name, one in own["headers"].items()}}
    if isinstance(own.get("rules"), list):
        made["rules"] = [*known_of.get("rules", []), *own["rules"]]
    return made


def _address(url: str) -> str:
    """What is wrong with an address; "": nothing."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "it must be an http or https URL"
    return "a key belongs into api_key_env or headers" if parts.username or parts.password else ""


def _provider(name: str, one: _Provider, environment: Mapping[str, str]) -> Provider:
    where = f"providers.{name}"
    if "/" in name or not name.isprintable() or not name.isascii():
        raise TableError(f"{where}: a name is printable ASCII without a slash")
    if wrong := _address(one.base_url):
        raise TableError(f"{where}.base_url: {wrong}")
    for header, value in {one.auth: "", **one.headers}.items():
        if header.lower() in _OURS or not _HEADER.fullmatch(header):
            raise TableError(f"{where}: {header} is no header that can be set here")
        if not value.isprintable() or not value.isascii():
            raise TableError(f"{where}.headers.{header}: a header is printable ASCII")
    key = one.api_key
    if one.api_key_env:
        if key:
            raise TableError(f"{where}: api_key and api_key_env exclude each other")
        key = environment.get(one.api_key_env, "").strip()
        if not key:
            raise TableError(f"{where}.api_key_env: {one.api_key_env} is not set")
    if not key.isprintable() or not key.isascii():
        raise TableError(f"{where}: the key is not printable ASCII")
    return Provider(
        name=name,
        base_url=one.base_url,
        api=one.api,
        api_key=key,
        auth=one.auth.lower(),
        headers=one.headers,
        dialect=one.dialect(),
        rules=_rules(one),
        models=None if one.models is None else tuple(one.models),
        connect_timeout_seconds=one.connect_timeout_seconds,
        first_byte_timeout_seconds=one.first_byte_timeout_seconds,
        idle_timeout_seconds=one.idle_timeout_seconds,
    )


def _rules(one: _Provider) -> tuple[tuple[tuple[str, ...], Dialect], ...]:
    return tuple((tuple(rule.models), rule.dialect()) for rule in one.rules)


def _route(name: str, one: _Model, providers: Mapping[str, Provider]) -> Route:
    deployments = []
    for number, written in enumerate(one.deployments):
        where = f"models.{name}.deployments.{number}"
        if isinstance(written, str):
            before, _, after = written.partition("/")
            given = _Deployment(provider=before, model=after, weight=1.0)
        else:
            given = written
        provider = providers.get(given.provider)
        if provider is None:
            raise TableError(f"{where}: there is no provider {given.provider}")
        if not given.model and "*" not in name:
            raise TableError(f"{where}: it names no model, as {given.provider}/<model>")
        deployments.append(Deployment(provider, given.model, given.weight))
    return Route(name, tuple(deployments), tuple(one.fallbacks), tuple(one.context_fallbacks))


def _check_served(catalog: Catalog, model: str, where: str) -> None:
    if catalog.written(model) is None and not catalog.listing:
        raise TableError(f"{where}: nobody serves {model}")
