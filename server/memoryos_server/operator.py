"""Commands on the stores, the same with the server running and stopped.

A running server answers on a unix socket that only its owner can reach; a command that finds nobody there takes the data
directory's lock and starts the stores itself. Each server has a socket of its own, for of those whose stores are all live
several may have one data directory; they answer alike. One JSON object a line each way; an answer that is a list comes as
one line per item, closed by `{"end": true}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memoryos_server.domain.admin.keys import Keeper, KeyService, NewKey
from memoryos_server.domain.core.audit import SYSTEM_TENANT, AuditEvent
from memoryos_server.domain.core.caller import ANY_TENANT
from memoryos_server.domain.core.faults import Fault, Invalid
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import from_unix, utc_now
from memoryos_server.domain.defense.sharing import Defense
from memoryos_server.domain.memory.deadletters import DeadLetters
from memoryos_server.domain.ports import ApiKey, AuditLog, DeadLetter
from memoryos_server.domain.ports.defense import PERMANENT
from memoryos_server.operator_privacy import PrivacyDesk
from memoryos_server.stores.archive import ArchiveError
from memoryos_server.stores.backup import Backups
from memoryos_server.stores.backup_file import BackupError
from memoryos_server.stores.chain_verify import Verifier
from memoryos_server.stores.keyring import KeyringError
from memoryos_server.stores.redis_audit import RedisAudit
from memoryos_server.stores.retention import Retention
from memoryos_server.stores.rotation import Rotated

log = logging.getLogger(__name__)

_HOLDS = {"backup": 60.0}
"""Commands that hold something up for the whole server, also its stop, and may be cut off anywhere -> for how long a reader
may read nothing, seconds."""

_STOP_SECONDS = 1.0
"""How long a stop waits for other commands."""

_END_SECONDS = 5.0
"""How long what was cut off may take to tidy up."""

ACTOR = "operator"
"""Who audit events name for a change made on the machine itself."""

_KEEPER = Keeper(ACTOR, every=True)


@dataclass(frozen=True, slots=True)
class House:
    """What is done to the stores as a whole.

    Attributes:
        backups: Makes backups.
        retention: Keeps the archive.
        audit: Opens what is in it.
        verifier: What verifies the chains, of a tenant or of all.
        rotate_master: Wraps all keys by another master key.
        privacy: Answers for persons' data.
    """

    backups: Backups | None = None
    retention: Retention | None = None
    audit: RedisAudit | None = None
    verifier: Callable[[str | None], Verifier] | None = None
    rotate_master: Callable[[], Awaitable[Rotated]] | None = None
    privacy: PrivacyDesk | None = None


class Operator:
    """Runs one command on open stores."""

    def __init__(
        self, keys: KeyService, audit: AuditLog, letters: DeadLetters, defense: Defense, house: House | None = None
    ) -> None:
        self._keys = keys
        self._defense = defense
        self._audit = audit
        self._letters = letters
        self._house = house or House()

    async def run(self, command: str, arguments: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The command's answer, item by item.

        Raises:
            Fault: The command failed; the message says why.
        """
        if command == "keys.create":
            new = NewKey(**{**arguments, "expires_at": _time(arguments.get("expires_at"))})
            key, record = await self._keys.create(new, _KEEPER)
            yield {"api_key": key, **_key(record)}
        elif command == "keys.list":
            for record in await self._keys.listed(_KEEPER, ANY_TENANT):
                yield _key(record)
        elif command == "keys.revoke":
            # Who may do this can make another admin key, too.
            yield _key(await self._keys.revoke(arguments["key"], _KEEPER, keep_admin=False))
        elif command == "keys.rotate":
            key, record, old = await self._keys.rotate(
                arguments["key"],
                _KEEPER,
                arguments.get("overlap_seconds"),
                _time(arguments.get("expires_at")),
                keep_admin=False,
            )
            yield {"api_key": key, **_key(record), "old_id": old.id, "old_expires_at": _key(old)["expires_at"]}
        elif command == "keys.rotate_master" and self._house.rotate_master is not None:
            await self._record("key.rotate_master", "", "master_key", outcome="intent")
            try:
                done = await self._house.rotate_master()
            except KeyringError as error:
                await self._record("key.rotate_master", "", "master_key", outcome="failed")
                raise Fault(str(error)) from error
            await self._record("key.rotate_master", done.master_key, "master_key")
            yield asdict(done)
        elif command == "audit.tail":
            async for item in self._tail(arguments.get("tenant_id"), int(arguments["limit"])):
                yield item
        elif command == "audit.verify" and self._house.verifier is not None and self._house.retention is not None:
            async for item in self._verify(self._house.verifier(arguments.get("tenant_id")), self._house.retention):
                yield item
        elif command in ("archive.run", "archive.verify") and self._house.retention is not None:
            yield await self._archive(self._house.retention, command, arguments)
        elif command == "queue.list":
            async for letter in self._letters.all(arguments.get("tenant_id")):
                yield _letter(letter)
        elif command == "queue.replay":
            if arguments["all"]:
                count = await self._letters.requeue_all(arguments.get("tenant_id"))
            else:
                await self._letters.requeue(arguments["id"], None)
                count = 1
            await self._record("queue.requeue", arguments["id"])
            yield {"replayed": count}
        elif command == "queue.discard":
            await self._letters.discard(arguments["id"], None)
            await self._record("queue.discard", arguments["id"])
            yield {"discarded": arguments["id"]}
        elif command.startswith("defense."):
            async for item in self._defend(command.removeprefix("defense."), arguments):
                yield item
        elif command.startswith("privacy.") and self._house.privacy is not None:
            async with aclosing(self._house.privacy.run(command.removeprefix("privacy."), arguments)) as answers:
                async for item in answers:
                    yield item
        elif command == "backup":
            if self._house.backups is None:
                raise Invalid("live stores are backed up where they run: see docs/backup.md", param="command")
            try:
                made = self._house.backups.make(Path(arguments["to"]), keyring_only=arguments["keyring_only"])
                async with aclosing(made) as steps:
                    async for step in steps:
                        if step.get("done"):
                            await self._record("backup.create", "", "backup")
                        yield step
            except BackupError as error:
                raise Fault(str(error)) from error
        else:
            raise Invalid(f"unknown command {command}", param="command")

    async def _defend(self, command: str, arguments: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        if command == "bans":
            for ban in self._defense.guard.bans():
                ends = None if ban.until == PERMANENT else from_unix(ban.until).isoformat()
                yield asdict(ban) | {"banned_at": from_unix(ban.banned_at).isoformat(), "until": ends}
        elif command == "whitelist":
            for one in self._defense.guard.whitelist():
                yield asdict(one) | {"added_at": from_unix(one.added_at).isoformat()}
        elif command == "unban":
            place = await self._defense.unban(arguments["ip"])
            await self._record("defense.unban", "", "ip", place)
            yield {"unbanned": place}
        elif command == "allow":
            name = await self._defense.allow(arguments["ip"], arguments["reason"], ACTOR)
            await self._record("defense.whitelist_add", "", "ip", name)
            yield {"added": name}
        elif command == "disallow":
            name = await self._defense.disallow(arguments["ip"])
            await self._record("defense.whitelist_remove", "", "ip", name)
            yield {"removed": name}
        else:
            raise Invalid(f"unknown command defense.{command}", param="command")

    async def _tail(self, tenant_id: str | None, limit: int) -> AsyncIterator[dict[str, Any]]:
        newest = [_event(event) async for event in self._audit.tail(tenant_id, limit)]
        retention, audit = self._house.retention, self._house.audit
        if len(newest) < limit and retention is not None and audit is not None:
            try:
                for event in await audit.opened(await retention.newest(tenant_id, limit - len(newest))):
                    yield _event(event)
            except (ArchiveError, OSError) as error:
                raise Fault(f"the archive cannot be read: {error}") from error
        for item in newest:
            yield item

    async def _verify(self, verifier: Verifier, retention: Retention) -> AsyncIterator[dict[str, Any]]:
        try:
            async with retention.unmoved():
                async for item in verifier.run():
                    yield item
        except OSError as error:
            raise Fault(f"the archive or the signed heads cannot be read: {error}") from error
        if item["problems"]:
            raise Fault("what was recorded is not as it was written")

    async def _archive(self, retention: Retention, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if command == "archive.verify":
                return {"intact": await retention.verify()}
            return {"moved": await retention.move(arguments.get("days")), "archived": await retention.total()}
        except (ArchiveError, OSError) as error:
            raise Fault(f"the archive: {error}") from error

    async def _record(
        self, event_type: str, name: str, kind: str = "queue", address: str = "", outcome: str = "ok"
    ) -> None:
        resource = f"{kind}/{name}" if name else kind
        await self._audit.append(
            [
                AuditEvent(
                    uuid7(), utc_now(), event_type, SYSTEM_TENANT, "", resource, event_type, outcome, ACTOR, address
                )
            ]
        )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _key(record: ApiKey) -> dict[str, Any]:
    shown = asdict(record) | {"permissions": sorted(record.permissions)}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in shown.items()}


def _letter(letter: DeadLetter) -> dict[str, Any]:
    shown = {name: value for name, value in asdict(letter).items() if name != "subject"}
    whose = {"tenant_id": letter.subject.tenant_id, "user_id": letter.subject.user_id} if letter.subject else {}
    return {**shown, **whose, "failed_at": letter.failed_at.isoformat()}


def _event(event: AuditEvent) -> dict[str, Any]:
    return event._asdict() | {"timestamp": event.timestamp.isoformat()}


@contextlib.asynccontextmanager
async def serve(operator: Operator, directory: Path) -> AsyncIterator[None]:
    """Answers commands on a socket in `directory`, which only the owner can enter, while the context lasts.

    Commands under way at its end are told so: those that hold up the server at once, others after a moment.
    """
    under_way: dict[asyncio.Task[Any], str] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        patience: float | None = None
        if (task := asyncio.current_task()) is None:
            raise RuntimeError("it is answered by a task")
        under_way[task] = ""
        try:
            request = json.loads(await reader.readline())
            # Closed at once when nobody listens any more: what a command holds, it holds for the whole server.
            patience = _HOLDS.get(request["command"])
            under_way[task] = request["command"]
            async with aclosing(operator.run(request["command"], request["arguments"])) as items:
                async for item in items:
                    writer.write(json.dumps({"item": item}).encode() + b"\n")
                    async with asyncio.timeout(patience):
                        await writer.drain()  # a long answer must not gather here
            writer.write(b'{"end": true}\n')
        except Fault as fault:
            writer.write(json.dumps({"error": fault.message, "param": fault.param}).encode() + b"\n")
        except (ValueError, KeyError, TypeError):
            writer.write(b'{"error": "malformed command", "param": null}\n')
        except ConnectionError:
            pass  # nobody listens any more
        except asyncio.CancelledError:
            what = under_way[task] or "command"
            error = f"the server stops: the {what} was interrupted" + (
                ", and leaves nothing incomplete" if patience else ""
            )
            writer.write(json.dumps({"error": error, "param": None}).encode() + b"\n")
            raise
        except Exception:
            log.exception("a command failed")
            writer.write(b'{"error": "the command failed; the server\'s log says why", "param": null}\n')
        finally:
            del under_way[task]
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(patience):
                    await writer.drain()
            writer.close()

    _forget_dead(directory)
    path = directory / f"operator-{secrets.token_hex(4)}.sock"
    server = await asyncio.start_unix_server(answer, sock=_listening(path))
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)
        await _interrupt(under_way)


async def _interrupt(under_way: Mapping[asyncio.Task[Any], str]) -> None:
    """Ends the commands under way."""
    tasks = list(under_way)
    if brief := [task for task, command in under_way.items() if command and command not in _HOLDS]:
        for task in under_way.keys() - brief:
            task.cancel()
        await asyncio.wait(brief, timeout=_STOP_SECONDS)
    for task in under_way:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_END_SECONDS)


def _listening(path: Path) -> socket.socket:
    """A socket that only the owner can reach. It has its name once it listens, so that it never looks dead."""
    fresh = path.with_suffix(".new")
    made = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        made.bind(str(fresh))
        made.listen()
        fresh.rename(path)
    except BaseException:
        made.close()
        raise
    finally:
        os.umask(before)
    return made


def _forget_dead(directory: Path) -> None:
    """Removes the sockets of servers that were killed."""
    for path in _sockets(directory):
        with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError):
            line.setblocking(False)
            try:
                line.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def _sockets(directory: Path) -> list[Path]:
    return sorted(directory.glob("operator*.sock"))


async def _connect(directory: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for path in _sockets(directory):
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return await asyncio.open_unix_connection(str(path))
    raise ConnectionRefusedError


async def call(directory: Path, command: str, arguments: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """A running server's answer to a command, item by item.

    Raises:
        ConnectionRefusedError: No server runs there.
        Fault: The command failed, or the server ended before it had answered.
    """
    reader, writer = await _connect(directory)
    try:
        writer.write(json.dumps({"command": command, "arguments": dict(arguments)}).encode() + b"\n")
        await writer.drain()
        while (line := await reader.readline()).endswith(b"\n"):
            answer = json.loads(line)
            if "error" in answer:
                raise Fault(answer["error"], param=answer["param"])
            if "end" in answer:
                return
            yield answer["item"]
        raise ConnectionResetError
    except ConnectionError:
        raise Fault("the server ended before it had answered; what was asked may have been done") from None
    finally:
        writer.close()
