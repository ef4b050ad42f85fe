"""What is wrong with a live Redis-side store, for `memoryos doctor`.

Looks at every server that takes writes; changes nothing. What an operator may not be asked (`CONFIG`, which managed stores
refuse) is taken from `INFO` as far as it tells.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from memoryos_server.stores.keyring import KeyringError, MasterKeys
from memoryos_server.stores.redis_links import sentinels
from memoryos_server.stores.redis_nodes import node_client
from memoryos_server.stores.redis_url import Endpoint
from memoryos_server.stores.scope import CHANGES, MANIFEST, STORE_KEYRING

OK, WARN, FAIL = "ok", "warning", "broken"

Found = tuple[str, str, str, str]
"""Name, state, text and hint of a finding."""

_OLDEST = (6, 2)
_SLOTS = 16384
_PATIENCE = 3.0
_NEARLY_FULL = 0.9
RIGHTS = "~{memoryos}:* ~{p*}:* &{memoryos}:* +@all -@admin -@dangerous +info +cluster|slots +cluster|shards +cluster|info +cluster|nodes"
"""What the server's user must be allowed, as ACL rules."""

_Node = tuple[str, Redis, Mapping[str, Any]]
"""A server's address, a client of it, and what it says of itself."""


async def examine(endpoint: Endpoint, master_key: str, previous: str = "") -> list[Found]:
    """Every finding on a store, in the order in which things are needed.

    Args:
        endpoint: Where it is.
        master_key: The setting, or "".
        previous: The setting `security.previous_master_key`, or "".
    """
    endpoint = replace(endpoint, timeout=min(endpoint.timeout, _PATIENCE))
    clients: list[Redis] = []
    try:
        return await _examine(endpoint, master_key, previous, clients)
    finally:
        await asyncio.gather(*(client.aclose(close_connection_pool=True) for client in clients), return_exceptions=True)


async def _examine(endpoint: Endpoint, master_key: str, previous: str, clients: list[Redis]) -> list[Found]:
    try:
        addresses = await _addresses(endpoint)
        nodes: list[_Node] = []
        found: list[Found] = []
        for host, port in addresses:
            client = node_client(endpoint, host, port)
            clients.append(client)
            at = host if endpoint.socket else f"{host}:{port}"
            try:
                nodes.append((at, client, await client.info()))
            except (RedisError, OSError) as error:
                if len(addresses) == 1 or _meaning(endpoint, error)[0] != "it cannot be reached":
                    raise
                found.append(("redis", WARN, f"the node {at} of the cluster cannot be reached", "start it again"))
        if not nodes:
            raise OSError("none of its nodes answers")
    except (RedisError, OSError, MasterNotFoundError) as error:
        said, hint = _meaning(endpoint, error)
        if endpoint.tls and await _speaks_plainly(endpoint):
            said, hint = "it does not speak TLS", "write redis in place of rediss in redis.url, or give its TLS port"
        return [("redis", FAIL, f"{endpoint}: {said}", hint)]
    if endpoint.kind == "cluster":
        found += await _cluster(nodes)
        nodes = [node for node in nodes if node[2].get("role") == "master"] or nodes
    elif int(nodes[0][2].get("cluster_enabled", 0)):
        hint = "write redis+cluster:// in redis.url"
        return [("redis", FAIL, f"{endpoint} is a node of a cluster", hint)]
    found.insert(0, _version(endpoint, nodes))
    for node in nodes:
        found += await _node(node)
    found += await _rights(nodes)
    found += await _key(nodes, master_key, previous)
    return list(dict.fromkeys(found))


async def _addresses(endpoint: Endpoint) -> list[tuple[str, int]]:
    """The servers to look at: one, the master, or the nodes of the cluster that take writes."""
    if endpoint.socket:
        return [(endpoint.socket, 0)]
    if endpoint.kind == "sentinel":
        known = sentinels(endpoint)
        try:
            return [await known.discover_master(endpoint.service)]
        finally:
            await asyncio.gather(*(one.aclose() for one in known.sentinels), return_exceptions=True)
    if endpoint.kind == "single":
        return list(endpoint.hosts)
    failed: Exception | None = None
    for host, port in endpoint.hosts:
        client = node_client(endpoint, host, port)
        try:
            slots = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]  # untyped in redis-py
            found = {(primary[0] or host, int(primary[1])) for primary in _primaries(slots)}
            return sorted(found) or [(host, port)]
        except ResponseError as error:
            if "cluster support disabled" in str(error):
                raise ResponseError("it is no cluster") from None
            failed = error
        except (RedisError, OSError) as error:
            failed = error
        finally:
            await client.aclose(close_connection_pool=True)
    raise failed or OSError("it names no host")


def _primaries(slots: Any) -> list[tuple[str, int]]:
    if isinstance(slots, dict):  # as redis-py reads the answer
        return [(str(one["primary"][0]), int(one["primary"][1])) for one in slots.values()]
    return [(one[2][0].decode(), int(one[2][1])) for one in slots]


def _meaning(endpoint: Endpoint, error: BaseException) -> tuple[str, str]:
    """What an error of connecting means, and what to do."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    texts = " ".join(str(each) for each in chain)
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain) or "CERTIFICATE_VERIFY_FAILED" in texts:
        return (
            "its certificate is not trusted, or is another host's",
            "set redis.ca_file to the authority that signed it, and name the host as the certificate does",
        )
    if any(isinstance(each, ssl.SSLError) for each in chain):
        return "it and this machine agree on no way to speak TLS", "let it speak TLS 1.2 or later"
    if isinstance(error, AuthenticationError) or any(word in texts for word in ("NOAUTH", "WRONGPASS")):
        return (
            "it refuses the user or the password",
            "set redis.username and redis.password (MEMORYOS_REDIS__PASSWORD or ..._FILE), or write them into redis.url",
        )
    if isinstance(error, NoPermissionError):
        return "its user may not do what is needed", f"ACL SETUSER <name> on {RIGHTS}"
    if isinstance(error, BusyLoadingError):
        return "it is still loading its data", "wait"
    if isinstance(error, MasterNotFoundError):
        return (
            f"no sentinel says where the master of {endpoint.service} is",
            "check the sentinels, the service's name, and redis.sentinel_password",
        )
    if "no cluster" in texts:
        return "it is not a cluster", "write redis:// in redis.url"
    if not endpoint.tls and ("closed by server" in texts or "Connection reset" in texts or "Protocol Error" in texts):
        return "it ends the connection; it may want TLS", "write rediss in place of redis in redis.url"
    return "it cannot be reached", "check host, port and network, and that it runs"


async def _speaks_plainly(endpoint: Endpoint) -> bool:
    """Whether the first host answers without TLS. Nobody's name or password is sent to find out."""
    host, port = endpoint.hosts[0]
    client = node_client(Endpoint(timeout=endpoint.timeout), host, port)
    try:
        await client.ping()
    except (AuthenticationError, ResponseError):
        return True
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose(close_connection_pool=True)
    return True


def _version(endpoint: Endpoint, nodes: list[_Node]) -> Found:
    for at, _, info in nodes:
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
        if version < _OLDEST:
            text = f"{at} is version {info['redis_version']}, which is too old"
            return "redis", FAIL, text, "Redis 6.2 or later, or Valkey"
    info = nodes[0][2]
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    return "redis", OK, f"{endpoint} answers: {name}", ""


async def _cluster(nodes: list[_Node]) -> list[Found]:
    raw = await nodes[0][1].execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]  # untyped in redis-py
    state = raw if isinstance(raw, dict) else dict(line.split(":", 1) for line in raw.decode().split())
    assigned, good = int(state["cluster_slots_assigned"]), int(state["cluster_slots_ok"])
    if assigned < _SLOTS:
        text = f"{_SLOTS - assigned} of the cluster's {_SLOTS} slots belong to no node: some people's memory cannot be kept"
        return [("redis cluster", FAIL, text, "assign them (CLUSTER ADDSLOTSRANGE, or valkey-cli --cluster fix)")]
    if good < _SLOTS or state["cluster_state"] != "ok":
        text = f"{_SLOTS - good} of the cluster's {_SLOTS} slots are not served; its state is {state['cluster_state']}"
        return [("redis cluster", FAIL, text, "bring the nodes that have them back")]
    return [("redis cluster", OK, f"all {_SLOTS} slots are served by {len(nodes)} primaries", "")]


async def _node(node: _Node) -> list[Found]:
    at, client, info = node
    config = await _config(client)
    found: list[Found] = []
    if info.get("role") != "master":
        found.append(("redis", FAIL, f"{at} is a replica, which takes no writes", "name its primary in redis.url"))
    aof = str(config.get("appendonly", "yes" if int(info.get("aof_enabled", 0)) else "no"))
    if aof == "no":
        snapshots = config.get("save")
        hint = "set appendonly yes (and appendfsync everysec or always)"
        if snapshots == "":
            text = f"{at} keeps nothing over a restart: appendonly is off and there is no save"
            found.append(("redis durability", WARN, text, hint))
        else:
            text = f"{at} keeps only snapshots: a crash loses what came after the last one"
            found.append(("redis durability", WARN, text, hint))
    else:
        sync = config.get("appendfsync", "")
        if sync == "no":
            text, hint = (
                f"{at} leaves writing to the system: a crash may lose half a minute",
                "set appendfsync everysec",
            )
            found.append(("redis durability", WARN, text, hint))
        else:
            loss = {"always": "every write is synced", "everysec": "a crash of its machine may lose a second"}.get(
                sync, ""
            )
            found.append(("redis durability", OK, f"append-only file{', ' + loss if loss else ''}", ""))
    policy = str(config.get("maxmemory-policy", info.get("maxmemory_policy", "")))
    if policy != "noeviction":
        text = f"{at} throws data away when it is full: maxmemory-policy is {policy or 'unknown'}"
        found.append(("redis eviction", WARN, text, "set maxmemory-policy noeviction"))
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if most and used >= most:
        found.append(("redis memory", FAIL, f"{at} is full: {used >> 20} of {most >> 20} MiB", "raise maxmemory"))
    elif most and used > _NEARLY_FULL * most:
        found.append(
            ("redis memory", WARN, f"{at} is nearly full: {used >> 20} of {most >> 20} MiB", "raise maxmemory")
        )
    bad = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"]
    if bad:
        found.append(
            ("redis disk", FAIL, f"{at} could not write to its disk ({', '.join(bad)})", "make room on its disk")
        )
    return found


async def _config(client: Redis) -> dict[str, str]:
    """The settings that it shows; none if it does not show them."""
    shown: dict[str, str] = {}
    for pattern in ("append*", "save", "maxmemory-policy"):  # Redis 6.2 takes one at a time
        try:
            shown |= {str(name): str(value) for name, value in (await client.config_get(pattern)).items()}
        except ResponseError:
            return {}
    return shown


async def _rights(nodes: list[_Node]) -> list[Found]:
    """Whether its user may do what the server does: one command of each kind, none of which changes anything."""
    hint = f"ACL SETUSER <name> on {RIGHTS}"
    for command in (
        ("EVAL", "return 1", 0),
        ("PUBLISH", CHANGES, "doctor"),
        *(("ACL DRYRUN", user, "SET", f"{MANIFEST}:probe", "") for user in await _who(nodes[0][1])),
    ):
        try:
            answer = await nodes[0][1].execute_command(*command)  # type: ignore[no-untyped-call]  # untyped in redis-py
            if command[0] == "ACL DRYRUN" and answer != b"OK":
                return [("redis rights", FAIL, "its user may not write the keys that are needed", hint)]
        except NoPermissionError:
            if command[0] == "ACL DRYRUN":
                continue  # it may not be asked; the server finds out
            return [("redis rights", FAIL, f"its user may not use {command[0]}", hint)]
        except ResponseError:
            continue
    return []


async def _who(client: Redis) -> list[str]:
    try:
        name = await client.execute_command("ACL WHOAMI")  # type: ignore[no-untyped-call]  # untyped in redis-py
        return [name.decode() if isinstance(name, bytes) else str(name)]
    except ResponseError:
        return []


async def _key(nodes: list[_Node], master_key: str, previous: str) -> list[Found]:
    """Whether the master key that is set opens what is kept."""
    for _, client, _ in nodes:
        try:
            wanted = await client.hget(STORE_KEYRING, "master_key")
        except (RedisError, OSError):
            continue  # another node's slot
        if wanted is None or not master_key:
            return []
        try:
            MasterKeys(master_key, None, previous=previous).get(
                wanted.decode() if isinstance(wanted, bytes) else wanted
            )
        except KeyringError as error:
            return [("master key", FAIL, str(error), "set the key with which the store was made")]
        return [("master key", OK, "it is the one that the store is locked with", "")]
    return []
