"""The collections of MemoryOS in a Qdrant server: what they are called, how they are made, and what they must be.

`<prefix>_main` has every point's payload and terms. Dense vectors lie in a collection of their own for each set of
models, `<prefix>_dense_<hash>`, so that another model starts with an empty one beside it, and nothing but vectors is
made anew. Each says in its metadata which schema it has.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from qdrant_client import grpc as q

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.frames import LEXICAL
from memoryos_server.stores.qdrant_link import QdrantLink, QdrantRefused

SCHEMA = 1
"""The version of what the collections hold and how."""

LEAST_VERSION = (1, 19)
"""Of the server. An older one reads over what it does not know in a request: it would count the rarity of words over
everybody's memory, and overwrite what is to be kept."""

_MARK = "memoryos_schema"
_MAKING_SECONDS = 60.0

_KEYWORD, _INTEGER, _FLOAT = q.FieldType.FieldTypeKeyword, q.FieldType.FieldTypeInteger, q.FieldType.FieldTypeFloat
_TENANT = q.PayloadIndexParams(keyword_index_params=q.KeywordIndexParams(is_tenant=True))
_RANGED = q.PayloadIndexParams(integer_index_params=q.IntegerIndexParams(lookup=True, range=True))
_SUBJECT: dict[str, tuple[Any, Any]] = {"s": (_KEYWORD, _TENANT), "ts": (_FLOAT, None), "v": (_INTEGER, _RANGED)}
_MAIN_INDEXES: Mapping[str, tuple[Any, Any]] = {
    **_SUBJECT,
    "n": (_KEYWORD, None),
    "q": (_INTEGER, _RANGED),
    "a": (_INTEGER, _RANGED),
    "y": (_KEYWORD, None),
    "g": (_KEYWORD, None),
    "src": (_KEYWORD, None),
    "te": (_FLOAT, None),
    "cr": (_FLOAT, None),
}
_DENSE_INDEXES: Mapping[str, tuple[Any, Any]] = {**_SUBJECT, "y": (_KEYWORD, None), "te": (_FLOAT, None)}


class SchemaDiffers(Exception):
    """The server or its collections are none that this version works with; the message says what to do."""


class Schema:
    """The collections.

    Attributes:
        main: The name of that with payloads and terms.
        dense: The name of that with the vectors of the models in use, or None if there is no model.
        sizes: The names of dense vectors -> their dimensions.
        denses_begin: What the names of collections of vectors begin with; the rest tells the models, as in the names of
            the embedded engine's shards.

    Args:
        prefix: What every name begins with.
        sizes: As above.
        fingerprint: Tells models of the same names and dimensions apart.
    """

    def __init__(self, prefix: str, sizes: Mapping[str, int], fingerprint: str) -> None:
        wanted = json.dumps([fingerprint, dict(sorted(sizes.items()))])
        self.denses_begin = f"{prefix}_dense_"
        self.main = f"{prefix}_main"
        self.sizes = dict(sizes)
        digest = hashlib.blake2b(wanted.encode(), digest_size=8).hexdigest()
        self.dense = self.denses_begin + digest if sizes else None

    async def ensure(self, link: QdrantLink) -> None:
        """Makes what is not there, and looks at what is. Any number of replicas may do so at once.

        Raises:
            SchemaDiffers: The server is too old, or its collections are not ours or of another version.
            BackendDown: The server does not answer.
        """
        await server_version(link)
        await self._ensure(link, self._main(), _MAIN_INDEXES)
        if self.dense is not None:
            await self._ensure(link, self._dense(self.dense, self.sizes), _DENSE_INDEXES)

    async def ensure_dense(self, link: QdrantLink, name: str, sizes: Mapping[str, int]) -> None:
        """Makes a collection of vectors, also of models not in use, or looks at what there is.

        Raises:
            SchemaDiffers: It is not ours, of another version, or has other vectors.
            BackendDown: The server does not answer.
        """
        await self._ensure(link, self._dense(name, sizes), _DENSE_INDEXES)

    async def examine(self, link: QdrantLink) -> str:
        """Looks as `ensure` does, but makes nothing; says what was found.

        Raises:
            SchemaDiffers: The server is too old, or its collections are not ours or of another version.
            BackendDown: The server does not answer.
        """
        version = await server_version(link)
        found = [self.main] if await self._there(link, self.main) else []
        for name in [*found, *await self.denses(link)]:
            wanted = self._main() if name == self.main else q.CreateCollection(collection_name=name)
            request = q.GetCollectionInfoRequest(collection_name=name)
            _verify(name, (await link.call(link.collections.Get, request)).result, wanted)
        there = f"the collection {self.main} is there" if found else f"the collection {self.main} will be made"
        return f"Qdrant {version}; {there}"

    async def denses(self, link: QdrantLink) -> list[str]:
        """Every collection of vectors that there is at this moment, those of models not in use, too."""
        found = await link.call(link.collections.List, q.ListCollectionsRequest())
        return sorted(one.name for one in found.collections if one.name.startswith(self.denses_begin))

    async def _ensure(self, link: QdrantLink, wanted: Any, indexes: Mapping[str, tuple[Any, Any]]) -> None:
        name = wanted.collection_name
        there = await self._there(link, name)
        if not there:
            try:
                await link.call(link.collections.Create, wanted, deadline=_MAKING_SECONDS)
            except (QdrantRefused, BackendDown) as error:
                # Another replica was faster, which versions of the server tell in several ways; or it is really refused.
                if not await self._there(link, name):
                    if isinstance(error, QdrantRefused):
                        raise SchemaDiffers(
                            f"the Qdrant server does not make the collection {name}: {error}"
                        ) from error
                    raise
        info = (await link.call(link.collections.Get, q.GetCollectionInfoRequest(collection_name=name))).result
        _verify(name, info, wanted)
        for field in indexes.keys() - info.payload_schema.keys():
            kind, params = indexes[field]
            request = q.CreateFieldIndexCollection(
                collection_name=name, wait=True, field_name=field, field_type=kind, field_index_params=params
            )
            await link.call(link.points.CreateFieldIndex, request, deadline=_MAKING_SECONDS)

    async def _there(self, link: QdrantLink, name: str) -> bool:
        request = q.CollectionExistsRequest(collection_name=name)
        return bool((await link.call(link.collections.CollectionExists, request)).result.exists)

    def _main(self) -> Any:
        terms = q.SparseVectorConfig(map={LEXICAL: q.SparseVectorParams(modifier=q.Modifier.Idf)})
        return self._made(self.main, sparse_vectors_config=terms)

    def _dense(self, name: str, sizes: Mapping[str, int]) -> Any:
        # Half precision: half the memory, and a cosine off by some 0.0002.
        params = {
            vector: q.VectorParams(size=size, distance=q.Distance.Cosine, datatype=q.Datatype.Float16)
            for vector, size in sizes.items()
        }
        return self._made(
            name,
            vectors_config=q.VectorsConfig(params_map=q.VectorParamsMap(map=params)),
            # Every search is one subject's: a graph for each that is large, and none over everybody.
            hnsw_config=q.HnswConfigDiff(m=0, payload_m=16),
        )

    def _made(self, name: str, **fields: Any) -> Any:
        # One shard: a server counts the rarity of words in each shard by itself.
        return q.CreateCollection(
            collection_name=name,
            shard_number=1,
            on_disk_payload=True,
            metadata={_MARK: q.Value(integer_value=SCHEMA)},
            **fields,
        )


async def server_version(link: QdrantLink) -> str:
    """The version of the server.

    Raises:
        SchemaDiffers: It is too old.
        BackendDown: The server does not answer.
    """
    version = str((await link.call(link.root.HealthCheck, q.HealthCheckRequest())).version)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise SchemaDiffers(f"the Qdrant server is version {version or 'unknown'}; MemoryOS needs {least} or newer")
    return version


def _verify(name: str, info: Any, wanted: Any) -> None:
    """Looks whether a collection is what it should be.

    Raises:
        SchemaDiffers: It is not.
    """
    other = "give MemoryOS another qdrant.collection_prefix"
    if _MARK not in info.config.metadata:
        raise SchemaDiffers(f"the collection {name} was not made by MemoryOS: {other}")
    found = info.config.metadata[_MARK].integer_value
    if found != SCHEMA:
        raise SchemaDiffers(
            f"the collection {name} has schema {found}, but this version reads schema {SCHEMA}:"
            f" run the version that made it, or {other}"
        )
    terms = info.config.params.sparse_vectors_config.map
    if wanted.HasField("sparse_vectors_config") and (LEXICAL not in terms or terms[LEXICAL].modifier != q.Modifier.Idf):
        raise SchemaDiffers(f"the collection {name} does not weigh words by their rarity: {other}")
    dense = info.config.params.vectors_config.params_map.map
    for vector, params in wanted.vectors_config.params_map.map.items():
        if vector not in dense or (dense[vector].size, dense[vector].distance) != (params.size, params.distance):
            raise SchemaDiffers(f"the collection {name} has no cosine vectors {vector!r} of {params.size}: {other}")
