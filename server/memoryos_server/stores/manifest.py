"""What a store is, and who may open it.

The first start writes the manifest in one atomic step, so that concurrent starters agree; every later start is held to
it:

- A newer schema, another partition count, another sealing: refused. There is no reading such data by accident.
- Another master key: refused by the keyring, naming the key id.
- Another embedding model, or another analysis of words: let in, said in `notes`, and from then on what the store expects.
  What was kept before is embedded, or analysed, again in the background; vectors of two models never lie in one index.
- A model that is no longer served: let in; its vectors are kept, and searched again once it is back.

The manifest holds facts; the store's wrapped secret and the master key's id lie in its keyring, so that a backup can keep
locks and keys apart and an old content backup opens only with the present keyring.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from memoryos_server.domain.core.time import utc_now
from memoryos_server.stores.keyring import KEY_BYTES, MasterKeys, StoreSecrets, Wrapping
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.scope import MANIFEST, MIGRATION, PARTITIONS, STORE_KEYRING

SCHEMA = 1
"""The schema of what this code writes. Raised with every change that older code would misread."""


class ManifestMismatch(RuntimeError):
    """The store is not what this start expects.

    Attributes:
        subject: What differs: `schema`, `partitions` or `sealing`.
        stored: What the store says.
        wanted: What this start says.
    """

    def __init__(self, subject: str, stored: str, wanted: str, advice: str) -> None:
        """Names both sides and what to do."""
        super().__init__(f"the store has {subject} {stored}, this server {wanted}: {advice}")
        self.subject = subject
        self.stored = stored
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class VectorModel:
    """What makes the vectors of one name.

    Attributes:
        name: The model.
        sha256: Of its weights, hex.
        dimension: Of its vectors.
    """

    name: str
    sha256: str
    dimension: int

    def __str__(self) -> str:
        return f"{self.name} ({self.dimension} dimensions, sha256 {self.sha256[:12]})"


@dataclass(frozen=True, slots=True)
class Expected:
    """What this server would write.

    Attributes:
        analysis: The version of the analysis of words.
        sealing: Whether content is sealed.
        vectors: Vector name -> model; empty where none is there.
    """

    analysis: str
    sealing: bool = True
    vectors: Mapping[str, VectorModel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """An opened store.

    Attributes:
        schema: The schema it is written in.
        sealing: Whether content is sealed.
        analysis: The version of the analysis of words.
        vectors: Vector name -> model, of all that were ever written.
        created_at: RFC 3339.
        master: How its keys are wrapped.
        secrets: What the store hashes with.
        notes: What an operator should know, in sentences.
    """

    schema: int
    sealing: bool
    analysis: str
    vectors: Mapping[str, VectorModel]
    created_at: str
    master: Wrapping = field(repr=False)
    secrets: StoreSecrets = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def store_id(self) -> str:
        """32 hex digits that tell this store from every other, whatever master key wraps its keys."""
        return self.secrets.hash("backup", "store")[:32]


_CREATE = Script(
    "create_manifest",
    """
    -- KEYS manifest, keyring. ARGV: number of manifest pairs, the pairs, then the keyring's pairs.
    if redis.call('EXISTS', KEYS[1]) == 0 then
      local n = tonumber(ARGV[1])
      for i = 2, 2 * n, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
      for i = 2 * n + 2, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
    end
    return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}
    """,
)

_CHANGE = Script(
    "change_manifest",
    """
    -- KEYS manifest. ARGV: field, value, field, value... Says what stands there in the end.
    for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
    return redis.call('HGETALL', KEYS[1])
    """,
)

SCRIPTS = (_CREATE, _CHANGE)


async def open_manifest(client: Client, keys: MasterKeys, expected: Expected) -> Manifest:
    """The manifest of the store, made if the store is new.

    Args:
        client: The connection.
        keys: Where master keys come from.
        expected: What this server writes.

    Raises:
        ManifestMismatch: The store is not what this server expects.
        KeyringError: The store's master key is not to be had; the message names its id and where it was looked for.
        BackendDown: The store does not answer.
    """
    both = await client.batch([("HGETALL", MANIFEST), ("HGETALL", STORE_KEYRING)], atomic=True)
    facts, ring = (_pairs(raw) for raw in both)
    if await client.run("EXISTS", MIGRATION):
        raise ManifestMismatch(
            "a move", "that is not complete", "wants a whole store", "run the same `memoryos migrate` again"
        )
    if not facts:
        facts, ring = await _create(client, keys, expected)
    _check(facts, expected)
    master = Wrapping(keys, keys.get(ring.get("master_key", b"").decode() or "unknown: the store's keyring is empty"))
    secrets = StoreSecrets(master.unwrap("store", "store", ring["secret"]), sealing=expected.sealing)
    changes, notes = _differences(facts, expected)
    if changes:
        facts = _pairs(await client.script(_CHANGE, [MANIFEST], [part for pair in changes.items() for part in pair]))
    return Manifest(
        int(facts["schema"]),
        expected.sealing,
        expected.analysis,
        _vectors(facts),
        facts["created_at"].decode(),
        master,
        secrets,
        notes,
    )


async def _create(client: Client, keys: MasterKeys, expected: Expected) -> tuple[dict[str, bytes], dict[str, bytes]]:
    master = keys.new()
    facts = {
        "schema": str(SCHEMA).encode(),
        "partitions": str(PARTITIONS).encode(),
        "sealing": _onoff(expected.sealing).encode(),
        "analysis": expected.analysis.encode(),
        "created_at": utc_now().isoformat().replace("+00:00", "Z").encode(),
        **{f"vector:{name}": _dump(model) for name, model in expected.vectors.items()},
    }
    ring = {"master_key": master.id.encode(), "secret": master.wrap("store", "store", os.urandom(KEY_BYTES))}
    args: list[str | bytes | int] = [len(facts)]
    args += [part for pair in (*facts.items(), *ring.items()) for part in pair]
    won_facts, won_ring = (_pairs(raw) for raw in await client.script(_CREATE, [MANIFEST, STORE_KEYRING], args))
    if won_ring.get("master_key") != ring["master_key"]:
        keys.discard(master)  # another starter was first; nothing was wrapped with this key
    return won_facts, won_ring


def _check(facts: Mapping[str, bytes], expected: Expected) -> None:
    schema = int(facts["schema"])
    if schema > SCHEMA:
        raise ManifestMismatch("schema", str(schema), str(SCHEMA), "run the newer server that wrote it")
    partitions = int(facts["partitions"])
    if partitions != PARTITIONS:
        raise ManifestMismatch("partitions", str(partitions), str(PARTITIONS), "run the server that it was made with")
    sealing, wanted = facts["sealing"].decode(), _onoff(expected.sealing)
    if sealing != wanted:
        raise ManifestMismatch("sealing", sealing, wanted, "set security.sealing to what the store was made with")


def _differences(facts: Mapping[str, bytes], expected: Expected) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """What the manifest must say from now on, and what an operator should know of it."""
    changes: dict[str, bytes] = {}
    notes = []
    analysis = facts["analysis"].decode()
    if analysis != expected.analysis:
        changes["analysis"] = expected.analysis.encode()
        notes.append(
            f"the analysis of words changed from {analysis} to {expected.analysis}: what was kept before is analysed again"
            " in the background, and is found less well until then"
        )
    stored = _vectors(facts)
    for name, model in expected.vectors.items():
        if stored.get(name) == model:
            continue
        changes[f"vector:{name}"] = _dump(model)
        others = ", ".join(str(one) for one in stored.values()) or "none"
        notes.append(
            f"the embedding model is {model}, what was kept before has {others}: it is embedded again in the background,"
            " and found by words until then"
        )
    if gone := sorted(stored.keys() - expected.vectors.keys()) if not expected.vectors else []:
        notes.append(f"vectors {', '.join(gone)} are in the store, but no model makes them now: they are not searched")
    return changes, tuple(notes)


def _vectors(facts: Mapping[str, bytes]) -> dict[str, VectorModel]:
    return {
        name.removeprefix("vector:"): VectorModel(**orjson.loads(raw))
        for name, raw in facts.items()
        if name.startswith("vector:")
    }


def _dump(model: VectorModel) -> bytes:
    return orjson.dumps({"name": model.name, "sha256": model.sha256, "dimension": model.dimension})


def _pairs(raw: object) -> dict[str, bytes]:
    # The plain answer to HGETALL is a flat list; redis-py makes a dict of it outside of scripts.
    if isinstance(raw, dict):
        return {key.decode(): value for key, value in raw.items()}
    assert isinstance(raw, list)  # noqa: S101  # narrows the type; the protocol has no third form
    return {raw[i].decode(): raw[i + 1] for i in range(0, len(raw), 2)}


def _onoff(value: bool) -> str:
    return "on" if value else "off"
