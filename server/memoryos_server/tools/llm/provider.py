"""What is known of providers, and which of them a model's name leads to: nothing but data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a provider's requests differ from OpenAI's.

    Attributes:
        rename: Member -> what this provider calls it. Where a request has both names, this provider's own stays.
        values: Member -> value -> what this provider says instead; values that are strings.
        drop: Members that it refuses.
        allow: The only members that it takes, after renaming; None: any.
        drop_of_messages: Members of messages that it refuses.
        hoists_system: Whether it moves every system message to the front. What stands amid the conversation then
            becomes a part of the user message after it, so that the place of a memory, and its cache, is kept.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    drop: frozenset[str] = frozenset()
    allow: frozenset[str] | None = None
    drop_of_messages: frozenset[str] = frozenset()
    hoists_system: bool = False

    def with_also(self, other: Dialect) -> Dialect:
        """Both; where they say different things, the other's."""
        return Dialect(
            rename={**self.rename, **other.rename},
            values={**self.values, **other.values},
            drop=self.drop | other.drop,
            allow=self.allow if other.allow is None else other.allow,
            drop_of_messages=self.drop_of_messages | other.drop_of_messages,
            hoists_system=self.hoists_system or other.hoists_system,
        )


@dataclass(frozen=True, slots=True)
class Provider:
    """An LLM provider.

    Attributes:
        name: What `provider/model` and the headers of answers call it.
        base_url: Where `POST /chat/completions`, or Anthropic's `POST /messages`, is, without that part.
        api: `openai`, or `anthropic` for Anthropic's own interface.
        api_key: The key that it is asked with; "": none.
        auth: `bearer` (`Authorization: Bearer`), `none`, or the name of the header that holds the bare key.
        headers: Headers that go along, such as a referer.
        dialect: How its requests differ.
        rules: How those of some models differ besides: patterns of models, and what is different.
        models: Patterns of the models that it serves; None: those that it lists itself, or any where it has no list.
        connect_timeout_seconds: How long a connection may take.
        first_byte_timeout_seconds: How long the first byte of an answer may take.
        idle_timeout_seconds: How long a stream may bring no data event, or a JSON answer no byte.
    """

    name: str
    base_url: str = field(repr=False)
    api: str = "openai"
    api_key: str = field(default="", repr=False)
    auth: str = "bearer"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    dialect: Dialect = Dialect()
    rules: tuple[tuple[tuple[str, ...], Dialect], ...] = ()
    models: tuple[str, ...] | None = None
    connect_timeout_seconds: float = 5.0
    first_byte_timeout_seconds: float = 60.0
    idle_timeout_seconds: float = 60.0

    @property
    def secrets(self) -> list[str]:
        """What must not be told to anybody: the key, and what headers hold if it is long enough to be one."""
        return [one for one in (self.api_key, *self.headers.values()) if len(one) > (0 if one == self.api_key else 15)]

    def dialect_of(self, model: str) -> Dialect:
        """How requests for one of its models differ."""
        dialect = self.dialect
        for patterns, more in self.rules:
            if matches(model, patterns):
                dialect = dialect.with_also(more)
        return dialect


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model at a provider.

    Attributes:
        provider: The provider.
        model: What the provider calls the model; "" in a route of a pattern: as it was asked for.
        weight: How often it is taken, beside the others of its route.
    """

    provider: Provider
    model: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for a model go.

    Attributes:
        name: The model's name, or the pattern that names it.
        deployments: One of these answers.
        fallbacks: Models asked when none of these does.
        context_fallbacks: Models asked when a request is too long for these.
    """

    name: str
    deployments: tuple[Deployment, ...]
    fallbacks: tuple[str, ...] = ()
    context_fallbacks: tuple[str, ...] = ()


def matches(model: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name is one of these, in which `*` stands for anything."""
    return any(_pattern(one).fullmatch(model) for one in patterns)


@lru_cache(1024)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.S)
