"""How settings are declared and read: from flags, the environment, files with secrets, and a TOML file.

It knows no setting: all of them stand in `memoryos.settings`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

PREFIX = "MEMORYOS_"

_MOST = 2**31 - 1
"""The largest number a setting may be: beyond it some store or system call would refuse it later, half-way."""

_BOOLS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


class SettingsError(ValueError):
    """A setting is unknown or malformed; the message names it."""


def setting(
    default: Any, doc: str, *, unit: str = "", choices: Sequence[str] = (), secret: bool = False, **also: str
) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: The default, or a function that makes it from the environment.
        doc: What it is for, in one sentence.
        unit: The unit or form of the value.
        choices: The allowed values, if they are few.
        secret: It is never printed and has no flag.
        also: `env`: another environment variable that sets it, if the setting's own is absent.
    """
    meta = {"doc": doc, "unit": unit, "choices": tuple(choices), "secret": secret, "env": also.get("env", "")}
    if callable(default):
        return field(default="", repr=not secret, metadata=meta | {"make": default})
    return field(default=default, repr=not secret, metadata=meta)


def home(env: Mapping[str, str], variable: str, fallback: str) -> Path:
    """The directory that an XDG variable names, else `fallback` in the home directory."""
    base = env.get(variable)
    return Path(base) if base else Path(env.get("HOME") or os.path.expanduser("~")) / fallback


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, for documentation, flags and `memoryos settings`.

    Attributes:
        name: Dotted, as in TOML.
        kind: The Python type of the value.
        default: The default, as text.
        doc: What it is for.
        unit: The unit or form.
        choices: The allowed values, or empty.
        secret: Never printed; no flag.
        also: Another environment variable that sets it, or "".
    """

    name: str
    kind: Any
    default: Any
    doc: str
    unit: str
    choices: tuple[str, ...]
    secret: bool
    also: str

    @property
    def env(self) -> str:
        """The environment variable."""
        return PREFIX + self.name.replace(".", "__").upper()

    @property
    def flag(self) -> str:
        """The command-line flag, or "" for a secret."""
        return "" if self.secret else "--" + self.name.replace(".", "-").replace("_", "-")


def declared(cls: type, env: Mapping[str, str], prefix: str = "") -> list[Setting]:
    """Every setting of a dataclass and of the dataclasses in it, in their order; `prefix` is what their names begin with."""
    found: list[Setting] = []
    hints = get_type_hints(cls)
    for f in fields(cls):
        kind = hints[f.name]
        if is_dataclass(kind):
            found += declared(kind, env, f"{prefix}{f.name}.")  # type: ignore[arg-type]  # a dataclass type, by the line above
            continue
        make: Callable[[Mapping[str, str]], str] | None = f.metadata.get("make")
        default = make(env) if make else (f.default if f.default is not MISSING else None)
        meta = f.metadata
        found.append(
            Setting(
                prefix + f.name, kind, default, meta["doc"], meta["unit"], meta["choices"], meta["secret"], meta["env"]
            )
        )
    return found


def read(
    settings: Sequence[Setting],
    env: Mapping[str, str],
    flags: Mapping[str, str],
    path: str | Path | None,
    *,
    others: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """Reads flags, environment and file.

    Args:
        settings: Every setting there is.
        env: The environment.
        flags: Dotted name -> text from the command line.
        path: The TOML file, or None.
        others: Names of the environment with our prefix that are no settings.

    Returns:
        Dotted name -> value; dotted name -> where it came from; warnings.

    Raises:
        SettingsError: A name is unknown or a value malformed.
    """
    items = {item.name: item for item in settings}
    table: dict[str, Any] = {}
    if path:
        try:
            table = _flatten(tomllib.loads(Path(path).read_text("utf-8")))
        except OSError as error:
            raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"the settings file {path} is not TOML: {error}") from None
    for name in table:
        if name not in items:
            raise SettingsError(f"unknown setting {name} in {path}")
    by_env = {item.env: item for item in items.values()}
    warnings = []
    for name in env:
        if not name.startswith(PREFIX) or name in by_env or name in others:
            continue
        plain = name.removesuffix("_FILE")
        if plain in by_env and by_env[plain].secret:
            continue
        if "__" in name:
            raise SettingsError(f"unknown setting {name}; `memoryos settings` lists them")
        warnings.append(f"{name} is not a setting; `memoryos settings` lists them")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for item in items.values():
        raw, source = _pick(item, env, flags, table, path)
        values[item.name] = _parse(item, raw, source)
        sources[item.name] = source
    return values, sources, tuple(warnings)


def _pick(
    item: Setting, env: Mapping[str, str], flags: Mapping[str, str], table: Mapping[str, Any], path: Any
) -> tuple[Any, str]:
    if item.name in flags:
        return flags[item.name], f"flag {item.flag}"
    for name in (item.env, item.also):
        if name and name in env:
            return env[name], f"environment {name}"
        if name and item.secret and env.get(f"{name}_FILE"):
            source = env[f"{name}_FILE"]
            try:
                return Path(source).read_text("utf-8").strip(), f"environment {name}_FILE"
            except OSError as error:
                raise SettingsError(f"{item.name}: cannot read {source}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise SettingsError(f"{item.name}: {source} is not UTF-8") from None
    if item.name in table:
        return table[item.name], f"file {path}"
    return item.default, "default"


def _parse(item: Setting, value: Any, source: str) -> Any:
    """The value in the setting's type.

    Raises:
        SettingsError: It cannot be read; the message names setting and source, never a secret's value.
    """
    shown = "its value" if item.secret else repr(value)
    try:
        if item.kind is bool:
            if isinstance(value, bool):
                return value
            return _BOOLS[str(value).strip().lower()]
        if item.kind in (int, float):
            if isinstance(value, bool) or (item.kind is int and isinstance(value, float)):
                raise ValueError
            number = item.kind(value)
            if not 0 <= number <= _MOST:  # neither inf nor nan
                raise ValueError
            return number
        if item.kind == tuple[str, ...]:
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(str(p).strip() for p in parts if str(p).strip())
        if not isinstance(value, str):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        kind = getattr(item.kind, "__name__", "list")
        raise SettingsError(f"{item.name} ({source}): {shown} is not a {item.unit or kind}") from None
    if item.choices and value not in item.choices:
        raise SettingsError(f"{item.name} ({source}): {shown} is not one of {', '.join(item.choices)}")
    return value


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """An object of a dataclass with settings from their values by dotted names."""
    made = {}
    hints = get_type_hints(cls)
    for f in fields(cls):
        kind = hints[f.name]
        made[f.name] = build(kind, values, f"{prefix}{f.name}.") if is_dataclass(kind) else values[prefix + f.name]  # type: ignore[arg-type]
    return cls(**made)
