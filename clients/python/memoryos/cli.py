"""The `memoryos` command.

It knows `up`, `doctor`, `settings`, `import` and `version`. Every other sub-command comes from an installed part by the entry
point group `memoryos.commands`, so that the client package imports neither server nor bridge. Every setting is a flag,
before or after the sub-command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import memoryos
from memoryos.settings import Loaded, Setting, SettingsError, known, load, value_of

GROUP = "memoryos.commands"
"""The entry points by which installed parts bring their sub-commands: `register(subparsers)`."""


class _Parser(argparse.ArgumentParser):
    """Takes no shortened flags: a flag that is added later must not change what a command line means."""

    def __init__(self, **options: Any) -> None:
        options["allow_abbrev"] = False
        super().__init__(**options)


def split_flags(arguments: Sequence[str], settings: Sequence[Setting]) -> tuple[dict[str, str], str | None, list[str]]:
    """Takes the settings out of a command line.

    Returns:
        Dotted name -> text; the settings file or None; all that is left. What follows `--` is left alone.

    Raises:
        SettingsError: A flag lacks its value, or names a secret.
    """
    by_flag = {item.flag: item for item in settings if item.flag}
    secrets = {"--" + item.name.replace(".", "-").replace("_", "-"): item for item in settings if item.secret}
    flags: dict[str, str] = {}
    config: str | None = None
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            return flags, config, [*rest, argument, *left]
        name, has_value, value = argument.partition("=")
        if name in secrets:
            env = secrets[name].env
            raise SettingsError(f"{secrets[name].name} is a secret and has no flag; set {env} or {env}_FILE")
        if name != "--config" and name not in by_flag:
            rest.append(argument)
            continue
        if not has_value and name != "--config" and by_flag[name].kind is bool:
            value = "true"
        elif not has_value:
            following = next(left, None)
            if following is None:
                raise SettingsError(f"{name} needs a value")
            value = following
        if name == "--config":
            config = value
        else:
            flags[by_flag[name].name] = value
    return flags, config, rest


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _settings(args: argparse.Namespace) -> int:
    loaded: Loaded = args.loaded
    rows = []
    for item in known():
        value = value_of(loaded.settings, item.name)
        if item.secret:
            value = "********" if value else ""
        rows.append((item, value, loaded.sources[item.name]))
    if args.json:
        listed = [
            {
                "name": item.name,
                "value": value,
                "unit": item.unit,
                "default": item.default,
                "source": source,
                "environment": item.env,
                "flag": item.flag,
                "secret": item.secret,
                "choices": item.choices,
                "doc": item.doc,
            }
            for item, value, source in rows
        ]
        print(json.dumps(listed, indent=2, ensure_ascii=False))
        return 0
    table = [("NAME", "VALUE", "UNIT", "DEFAULT", "SOURCE")] + [
        (item.name, _shown(value) or "-", item.unit or "-", _shown(item.default) or "-", source)
        for item, value, source in rows
    ]
    widths = [max(len(row[i]) for row in table) for i in range(4)]
    for row in table:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))
    print(
        "\nA name a.b is `b` under [a] in TOML, MEMORYOS_A__B in the environment, --a-b as a flag; --json tells more."
    )
    return 0


def _version(args: argparse.Namespace) -> int:
    print(f"memoryos {memoryos.__version__}")
    return 0


def _up(args: argparse.Namespace) -> int:
    from memoryos import up  # late: no other command needs it

    return up.main(args.loaded, args.config)


def _doctor(args: argparse.Namespace) -> int:
    from memoryos import doctor  # late: no other command needs it

    return doctor.main(args.loaded, args.settings_error, as_json=args.json)


def _import(args: argparse.Namespace) -> int:
    from memoryos.importing import command  # late: no other command needs it

    return command.main(args.loaded, args)


def _many(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError("it must be 1..64")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="memoryos",
        description="Self-hosted memory for AI agents.",
        epilog="Every setting is also a flag, such as --server-listen 127.0.0.1:50051; `memoryos settings` lists them. "
        "--config names a settings file (default: memoryos.toml here, if there is one).",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    up = commands.add_parser("up", help="run server and bridge together until Ctrl-C")
    up.set_defaults(run=_up)
    doctor = commands.add_parser("doctor", help="say what works, what is missing and how to get it")
    doctor.add_argument("--json", action="store_true", help="a JSON array of findings")
    doctor.set_defaults(run=_doctor, bad_settings_too=True)
    settings = commands.add_parser("settings", help="list every setting, its value and where that comes from")
    settings.add_argument("--json", action="store_true", help="a JSON array")
    settings.set_defaults(run=_settings)
    importer = commands.add_parser(
        "import",
        help="bring in what other systems keep: mem0, ChatGPT, JSON lines",
        description="Brings in memories of mem0, conversations of a ChatGPT data export, or turns as JSON lines. Run again, it "
        "goes on where it was interrupted and adds nothing twice. The key is MEMORYOS_API_KEY.",
    )
    importer.add_argument("file", metavar="FILE", help="the file, of any size; a ChatGPT export may be its ZIP archive")
    importer.add_argument(
        "--format", choices=("auto", "mem0", "chatgpt", "jsonl"), default="auto", help="default: auto"
    )
    importer.add_argument("--user", help="whose memory it becomes (default: whom the file names, else the key's user)")
    importer.add_argument("--tenant", help="the tenant (default: the key's)")
    importer.add_argument("--server", metavar="HOST:PORT", help="the gRPC server (default: the one of the settings)")
    importer.add_argument(
        "--tls", action="store_true", help="speak TLS with the server, as the settings bridge.server_tls say"
    )
    importer.add_argument(
        "--concurrency", type=_many, default=8, metavar="N", help="items under way at a time (default: 8)"
    )
    importer.add_argument("--dry-run", action="store_true", help="read the file and send nothing")
    importer.add_argument("--json", action="store_true", help="a JSON object on what was done")
    importer.set_defaults(run=_import)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version, bad_settings_too=True)
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        _register(entry, commands)
    return parser


def _register(entry: EntryPoint, commands: Any) -> None:
    """Adds an installed part's sub-commands; a part whose extra is not installed, or that is broken, has none."""
    try:
        register = entry.load()
    except ImportError as error:
        if (error.name or "").startswith("memoryos"):  # no missing extra: the installation itself is damaged
            print(f"memoryos: warning: the commands of the {entry.name} are missing: {error}", file=sys.stderr)
        return
    register(commands)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code: 0 done, 1 failed, 2 the command line or a setting is wrong."""
    try:
        flags, config, rest = split_flags(sys.argv[1:] if arguments is None else arguments, known())
        args = _parser().parse_args(rest)
        args.config = str(Path(config).absolute()) if config else None
        args.loaded, args.settings_error = None, None
        try:
            args.loaded = load(flags=flags, config=config)
        except SettingsError as error:
            if not getattr(args, "bad_settings_too", False):
                raise
            args.settings_error = error
    except SettingsError as error:
        print(f"memoryos: {error}", file=sys.stderr)
        return 2
    for warning in args.loaded.warnings if args.loaded else ():
        print(f"memoryos: warning: {warning}", file=sys.stderr)
    try:
        return int(args.run(args))
    except ModuleNotFoundError as error:
        if (error.name or "memoryos").startswith("memoryos"):
            raise
        print(f"memoryos: {error.name} is not installed; `memoryos doctor` says how to get it", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        sys.stderr.close()  # or the interpreter complains once more while it ends
        return 1


if __name__ == "__main__":
    sys.exit(main())
