"""The Redis side of the store, opened as one thing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from memoryos_server.stores import redis_keys, redis_subjects
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.manifest import Expected, Manifest, open_manifest
from memoryos_server.stores.redis_audit import RedisAudit
from memoryos_server.stores.redis_budgets import RedisBudgets
from memoryos_server.stores.redis_chain import RedisChain
from memoryos_server.stores.redis_changes import Changes
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.redis_consents import RedisConsents
from memoryos_server.stores.redis_defense import RedisDefense
from memoryos_server.stores.redis_erasures import RedisErasures
from memoryos_server.stores.redis_heat import RedisHeat
from memoryos_server.stores.redis_keys import RedisApiKeys
from memoryos_server.stores.redis_queue import RedisQueue
from memoryos_server.stores.redis_receipts import RedisReceipts
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.redis_turns import RedisTurns
from memoryos_server.stores.redis_url import Endpoint
from memoryos_server.stores.redis_usage import RedisUsage


@dataclass(frozen=True, slots=True)
class RedisStore:
    """Everything that is kept on the Redis side.

    Attributes:
        manifest: What the store is; `manifest.notes` are for the operator.
        subjects: The ports `Subjects`, `People` and `Sealers`.
        turns: The port `Turns`.
        queue: The port `Queue`.
        heat: The port `HeatStore`.
        audit: The port `AuditLog`.
        chain: The chains that recorded events are put into.
        keys: The ports `ApiKeys` and `KeyStore`.
        usage: The port `UsageStore`.
        budgets: The port `BudgetStore`.
        receipts: The port `ReceiptStore`.
        consents: The port `ConsentStore`.
        defense: The port `DefenseStore`.
        erasures: The port `Erasures`.
        changes: Hears what other replicas changed, and tells them.
        shared: Whether other processes may work on it, too.
    """

    client: Client
    manifest: Manifest
    subjects: RedisSubjects
    turns: RedisTurns
    queue: RedisQueue
    heat: RedisHeat
    audit: RedisAudit
    chain: RedisChain
    keys: RedisApiKeys
    usage: RedisUsage
    budgets: RedisBudgets
    receipts: RedisReceipts
    consents: RedisConsents
    defense: RedisDefense
    erasures: RedisErasures
    changes: Changes
    shared: bool

    @staticmethod
    @asynccontextmanager
    async def connect(
        where: str | Endpoint,
        keys: MasterKeys,
        expected: Expected,
        *,
        short_term_turns: int = 20,
        short_term_ttl_seconds: int = 3600,
        session_idle_seconds: int = 1800,
        usage_days: int = 90,
        receipts_days: int = 7,
        holder: str = "",
        consent_required: bool = False,
    ) -> AsyncIterator[RedisStore]:
        """The opened store, until the block ends.

        Args:
            where: A URL (see `redis_url`) or what it says.
            keys: Where master keys come from.
            expected: What this server writes.
            short_term_turns: How many recent turns the short-term memory holds.
            short_term_ttl_seconds: How long after the last turn it lasts.
            session_idle_seconds: How long after the last turn a conversation is over and its turns are consolidated;
                at the latest shortly before the short-term memory ends.
            usage_days: How long it is kept what chats cost.
            receipts_days: How long it is kept which memories went into chats.
            holder: Under which name this process holds partitions; only one that is alone may keep one over restarts.
            consent_required: Whether nothing is kept of who did not agree to it; else only of who objected.

        Raises:
            ManifestMismatch: The store is not what this server expects.
            KeyringError: The store's master key is not to be had.
            BackendDown: The store does not answer.
        """
        async with AsyncExitStack() as stack:
            client = Client(where)
            stack.push_async_callback(client.aclose)
            manifest = await open_manifest(client, keys, expected)
            changes = Changes(client)
            subjects = RedisSubjects(
                client,
                manifest,
                live=lambda: changes.live,
                ended=lambda subject_id: changes.tell(redis_subjects.KIND, subject_id),
            )
            chain = RedisChain(client, manifest)
            audit = RedisAudit(client, manifest, subjects, chain)
            api_keys = RedisApiKeys(client, manifest, lambda: changes.live)
            changes.listen(redis_keys.KIND, api_keys.heard, api_keys.distrust)
            changes.listen(redis_subjects.KIND, subjects.heard, subjects.distrust)
            await stack.enter_async_context(changes)
            # Turns are consolidated while the short-term memory still shows them, so that none is ever out of both.
            idle = min(session_idle_seconds, short_term_ttl_seconds - min(60, short_term_ttl_seconds // 10))
            yield RedisStore(
                client,
                manifest,
                subjects,
                RedisTurns(
                    client,
                    subjects,
                    audit,
                    keep=short_term_turns,
                    ttl_seconds=short_term_ttl_seconds,
                    consent_required=consent_required,
                ),
                RedisQueue(
                    client,
                    subjects,
                    audit,
                    full=short_term_turns,
                    idle_seconds=idle,
                    holder=holder,
                    consent_required=consent_required,
                ),
                RedisHeat(client, subjects),
                audit,
                chain,
                api_keys,
                RedisUsage(client, manifest, days=usage_days),
                RedisBudgets(client, manifest),
                RedisReceipts(client, subjects, days=receipts_days),
                RedisConsents(client, subjects, audit),
                RedisDefense(client, manifest, changes),
                RedisErasures(client, manifest, subjects),
                changes,
                shared=not holder,
            )

    async def ping(self) -> None:
        """Returns if the store answers and takes writes.

        Raises:
            BackendDown: It does not.
        """
        await self.client.probe()
