"""The sub-commands that the server brings to `memoryos`: serve, keys, audit, queue, defense, and those of other modules."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any

from memoryos.settings import Loaded, SettingsError
from memoryos_server import operator
from memoryos_server.domain.core.faults import Fault


def serve(loaded: Loaded) -> int:
    """Runs the server until it is told to stop; the exit code."""
    # gRPC's core would write a line of its own for every handshake that fails; it reads this when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from memoryos_server import app  # late: other commands need neither gRPC nor the model

    for warning in loaded.warnings:
        print(f"memoryos: {warning}", file=sys.stderr)
    try:
        app.main(loaded)
    except (SettingsError, app.StartError) as error:
        print(f"memoryos: {error}", file=sys.stderr)
        return 2
    return 0


async def ask(
    loaded: Loaded, command: str, arguments: Mapping[str, Any], *, points: bool = False
) -> AsyncGenerator[dict[str, Any], None]:
    """A command's answer, from the running server or, with none running, from the stores themselves.

    Args:
        loaded: The settings.
        command: The command.
        arguments: What it takes.
        points: Whether it reads the searchable side.

    Raises:
        Fault: The command failed.
        StartError: The stores cannot be opened.
    """
    from memoryos_server import app

    for _ in range(20):
        try:
            async with aclosing(operator.call(app.operator_dir(loaded.settings), command, arguments)) as answers:
                async for item in answers:
                    yield item
            return
        except ConnectionRefusedError:
            pass
        try:
            async with (
                app.open_operator(loaded.settings, points=points) as found,
                aclosing(found.run(command, arguments)) as answers,
            ):
                async for item in answers:
                    yield item
            return
        except app.InUse:
            await asyncio.sleep(0.25)  # a server is just starting or stopping: ask again
    raise Fault("the data directory is in use and its server does not answer")


def run(args: argparse.Namespace, command: str, arguments: Mapping[str, Any], show: Any) -> int:
    """Runs a command and prints its answer, item by item; the exit code."""
    from memoryos_server import app

    async def asked() -> None:
        async with aclosing(ask(args.loaded, command, arguments)) as answers:
            async for item in answers:
                print(json.dumps(item, ensure_ascii=False) if args.json else show(item))

    try:
        asyncio.run(asked())
    except (Fault, SettingsError, app.StartError) as error:
        print(f"memoryos: {error}", file=sys.stderr)
        return 1
    return 0


def _show_key(item: Mapping[str, Any]) -> str:
    bounds = (("requests a minute", "requests_per_minute"), ("tokens a day", "tokens_per_day"))
    budget = "".join(f"  {item[name]} {unit}" for unit, name in bounds if item[name])
    line = (
        f"{item['id']}  tenant={item['tenant_id']}  user={item['user_id']}  {','.join(item['permissions'])}"
        f"  expires={item['expires_at'] or 'never'}  last used={item['last_used_at'] or 'never'}{budget}  {item['description']}"
    ).rstrip()
    if "old_id" in item:
        line += f"\nThe old key, {item['old_id']}, ends at {item['old_expires_at']}."
    return f"{line}\nThe key, shown this once:\n{item['api_key']}" if "api_key" in item else line


def _show_master(item: Mapping[str, Any]) -> str:
    lines = [f"master key {item['master_key']} wraps everything now; {item['rewrapped']:,} keys were wrapped anew"]
    if item["previous"]:
        lines.append(
            f"{item['previous']} opens nothing but keyrings that were backed up before: make a backup, and then destroy it"
        )
    if item["left"]:
        lines.append(f"{item['left']:,} keys do not open and stay as they are; the server's log names them")
    return "\n".join(lines)


def _show_event(item: Mapping[str, Any]) -> str:
    return (
        f"{item['timestamp']}  {item['tenant_id']}  {item['user_id'] or '-'}  {item['event_type']}  {item['outcome']}"
        f"  {item['resource']}  by {item['actor']}  {item['details']}"
    ).rstrip()


def _show_verified(item: Mapping[str, Any]) -> str:
    if "problem" in item:
        number = f"event {item['number']}" if item["number"] else "-"
        return f"{item['tenant_id'] or '-'}  {number}  {item['place']}  {item['problem']}"
    lines = [
        f"{item['events']:,} events of {item['tenants']:,} tenants read, {item['archived']:,} of them in the archive; "
        f"{item['waiting']:,} are not chained yet: {'NOT ' if item['problems'] else ''}intact"
    ]
    if item["unsigned"]:
        lines.append(f"no signed head is here, so that a missing end cannot be seen, of: {', '.join(item['unsigned'])}")
    return "\n".join(lines)


def _show_letter(item: Mapping[str, Any]) -> str:
    return (
        f"{item['id']}  {item['failed_at']}  tenant={item.get('tenant_id', '-')}  user={item.get('user_id', '-')}"
        f"  {item['kind']}  event={item['event_id'] or '-'}  tries={item['attempts']}  {item['reason']}"
    ).rstrip()


def _show_ban(item: Mapping[str, Any]) -> str:
    return f"{item['place']}  {item['reason']}  offence={item['offence']}  until={item['until'] or 'unbanned'}"


def _show_listed(item: Mapping[str, Any]) -> str:
    return f"{item['network']}  since={item['added_at']}  by={item['added_by']}  {item['reason']}".rstrip()


def _register_defense(subparsers: Any) -> None:
    commands = subparsers.add_parser("defense", help="see and end bans, keep the whitelist").add_subparsers(
        required=True
    )
    bans = commands.add_parser("bans", help="the bans that hold, newest first")
    bans.set_defaults(run=lambda args: run(args, "defense.bans", {}, _show_ban))
    unban = commands.add_parser("unban", help="end a ban, temporary or permanent, at once")
    unban.add_argument("ip", help="the address")
    unban.set_defaults(
        run=lambda args: run(args, "defense.unban", {"ip": args.ip}, lambda item: f"unbanned: {item['unbanned']}")
    )
    whitelist = commands.add_parser("whitelist", help="who is neither banned nor limited")
    whitelist.set_defaults(run=lambda args: run(args, "defense.whitelist", {}, _show_listed), json=False)
    entries = whitelist.add_subparsers()
    shown = entries.add_parser("list", help="the whitelist, newest first")
    shown.set_defaults(run=lambda args: run(args, "defense.whitelist", {}, _show_listed))
    add = entries.add_parser("add", help="add an address or a network; bans in it end")
    add.add_argument("ip", help="such as 192.168.1.100 or 10.0.0.0/8")
    add.add_argument("--reason", default="", help="why, for people")
    add.set_defaults(
        run=lambda args: run(
            args, "defense.allow", {"ip": args.ip, "reason": args.reason}, lambda item: f"added: {item['added']}"
        )
    )
    remove = entries.add_parser("remove", help="take an address or a network off it")
    remove.add_argument("ip", help="as it was added")
    remove.set_defaults(
        run=lambda args: run(args, "defense.disallow", {"ip": args.ip}, lambda item: f"removed: {item['removed']}")
    )
    for parser in (bans, unban, shown, add, remove):
        parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _create(args: argparse.Namespace) -> int:
    permissions = "admin" if args.admin else args.permissions
    arguments = {
        "user_id": args.user or ("admin" if args.admin else "default_user"),
        "tenant_id": args.tenant or ("*" if args.admin else "default"),
        "permissions": [p.strip() for p in permissions.split(",") if p.strip()],
        "description": args.description,
        "expires_at": args.expires.isoformat() if args.expires else None,
        "requests_per_minute": args.requests_per_minute,
        "tokens_per_day": args.tokens_per_day,
    }
    return run(args, "keys.create", arguments, _show_key)


def _rotate(args: argparse.Namespace) -> int:
    arguments = {
        "key": args.key,
        "overlap_seconds": args.overlap_seconds,
        "expires_at": args.expires.isoformat() if args.expires else None,
    }
    return run(args, "keys.rotate", arguments, _show_key)


def _time(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.astimezone()


def register(subparsers: Any) -> None:
    """Adds serve, keys, audit, queue and defense; backup, restore and migrate; privacy."""
    from memoryos_server import moving, privacy_commands

    moving.register(subparsers)
    privacy_commands.register(subparsers)
    sub = subparsers.add_parser("serve", help="run the gRPC server with its stores")
    sub.set_defaults(run=lambda args: serve(args.loaded))

    keys = subparsers.add_parser("keys", help="make, list, rotate and revoke API keys").add_subparsers(required=True)
    create = keys.add_parser("create", help="make a key; it is shown once")
    create.add_argument("--user", help="its user (default: default_user, or admin with --admin)")
    create.add_argument("--tenant", help="its tenant (default: default); * may name any (default with --admin)")
    create.add_argument("--permissions", default="chat,memory", help="comma-separated (default: chat,memory)")
    create.add_argument("--admin", action="store_true", help="every permission")
    create.add_argument("--description", default="", help="for people")
    create.add_argument("--expires", type=_time, help="when it ends, such as 2027-01-31T00:00:00Z (default: never)")
    create.add_argument(
        "--requests-per-minute", type=int, default=0, help="its chats in a minute (default: any number)"
    )
    create.add_argument(
        "--tokens-per-day", type=int, default=0, help="tokens of its chats on a day (default: any number)"
    )
    create.set_defaults(run=_create)
    listing = keys.add_parser("list", help="list keys, never the keys themselves")
    listing.set_defaults(run=lambda args: run(args, "keys.list", {}, _show_key))
    revoke = keys.add_parser("revoke", help="end a key at once")
    revoke.add_argument("key", help="the key or its id")
    revoke.set_defaults(run=lambda args: run(args, "keys.revoke", {"key": args.key}, _show_key))

    rotate = keys.add_parser("rotate", help="make a new key with the rights of an old one, which ends after a while")
    rotate.add_argument("key", help="the old key or its id")
    rotate.add_argument(
        "--overlap-seconds", type=int, help="how long the old key goes on, 0..2592000 (default: 86400, a day)"
    )
    rotate.add_argument("--expires", type=_time, help="when the new key ends (default: when the old one would have)")
    rotate.set_defaults(run=_rotate)

    master = keys.add_parser("rotate-master", help="wrap the keys of all data by another master key, or go on with it")
    master.set_defaults(run=lambda args: run(args, "keys.rotate_master", {}, _show_master))

    audit = subparsers.add_parser("audit", help="read what was recorded").add_subparsers(required=True)
    tail = audit.add_parser("tail", help="the newest events, oldest of them first")
    tail.add_argument("--limit", type=int, default=50, help="how many (default: 50)")
    tail.add_argument("--tenant", dest="tenant_id", help="of one tenant only")
    tail.set_defaults(
        run=lambda args: run(args, "audit.tail", {"limit": args.limit, "tenant_id": args.tenant_id}, _show_event)
    )
    verify = audit.add_parser(
        "verify", help="read all chains and the archive; exit code 1 if anything is not as written"
    )
    verify.add_argument("--tenant", dest="tenant_id", help="of one tenant only; _system has what nobody was known for")
    verify.set_defaults(run=lambda args: run(args, "audit.verify", {"tenant_id": args.tenant_id}, _show_verified))
    letters = subparsers.add_parser("queue", help="see, replay and discard dead letters")
    letters.set_defaults(run=lambda args: run(args, "queue.list", {"tenant_id": None}, _show_letter), json=False)
    letter = letters.add_subparsers()
    seen = letter.add_parser("list", help="what was given up, oldest first")
    seen.add_argument("--tenant", dest="tenant_id", help="of one tenant only")
    seen.set_defaults(run=lambda args: run(args, "queue.list", {"tenant_id": args.tenant_id}, _show_letter))
    replay = letter.add_parser("replay", help="give dead letters back to the workers")
    which = replay.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", default="", help="the dead letter")
    which.add_argument("--all", action="store_true", help="every dead letter")
    replay.add_argument("--tenant", dest="tenant_id", help="with --all: of one tenant only")
    replay.set_defaults(
        run=lambda args: run(
            args,
            "queue.replay",
            {"id": args.id, "all": args.all, "tenant_id": args.tenant_id},
            lambda item: f"replayed: {item['replayed']}",
        )
    )
    discard = letter.add_parser("discard", help="drop a dead letter for good")
    discard.add_argument("id", help="the dead letter")
    discard.set_defaults(
        run=lambda args: run(args, "queue.discard", {"id": args.id}, lambda item: f"discarded: {item['discarded']}")
    )
    _register_defense(subparsers)
    for parser in (create, listing, revoke, rotate, master, tail, verify, seen, replay, discard):
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
