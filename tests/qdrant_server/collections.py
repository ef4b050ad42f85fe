"""Collections on disk: each a shard of the Edge engine beside the message that made it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import qdrant_edge as qe
from qdrant_client import grpc as q

from tests.qdrant_server import forms


class Missing(LookupError):
    """There is no such collection."""


class There(ValueError):
    """There is such a collection already."""


class Collection:
    """One collection.

    Attributes:
        made: The request that made it.
        shard: Its points.
    """

    def __init__(self, directory: Path, made: Any) -> None:
        self.made = made
        self._indexes = directory / "indexes"
        self._indexes.mkdir(exist_ok=True)
        points = directory / "points"
        config = _config(made)
        # With the engine's own log: what was acknowledged outlives a kill, as with a real server.
        self.shard = qe.EdgeShard.load(str(points), config) if points.exists() else None
        if self.shard is None:
            points.mkdir()
            self.shard = qe.EdgeShard.create(str(points), config)

    def index(self, message: Any) -> None:
        self.shard.update(qe.UpdateOperation.create_field_index(message.field_name, forms.index(message)))
        (self._indexes / quote(message.field_name, safe="")).write_bytes(message.SerializeToString())

    def info(self) -> Any:
        made = self.made
        params = q.CollectionParams(shard_number=made.shard_number or 1)
        if made.HasField("vectors_config"):
            params.vectors_config.CopyFrom(made.vectors_config)
        if made.HasField("sparse_vectors_config"):
            params.sparse_vectors_config.CopyFrom(made.sparse_vectors_config)
        info = q.CollectionInfo(
            status=q.CollectionStatus.Green, points_count=self.shard.count(qe.CountRequest(exact=True))
        )
        info.config.params.CopyFrom(params)
        info.config.hnsw_config.CopyFrom(made.hnsw_config)
        for name, value in made.metadata.items():
            info.config.metadata[name].CopyFrom(value)
        for path in self._indexes.iterdir():
            message = q.CreateFieldIndexCollection.FromString(path.read_bytes())
            schema = info.payload_schema[unquote(path.name)]
            schema.data_type = {
                q.FieldType.FieldTypeKeyword: q.PayloadSchemaType.Keyword,
                q.FieldType.FieldTypeInteger: q.PayloadSchemaType.Integer,
                q.FieldType.FieldTypeFloat: q.PayloadSchemaType.Float,
            }[message.field_type]
            schema.params.CopyFrom(message.field_index_params)
        return info


class Collections:
    """The collections of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, Collection] = {}
        for path in directory.iterdir():
            if (path / "made").exists():
                made = q.CreateCollection.FromString((path / "made").read_bytes())
                self._open[made.collection_name] = Collection(path, made)
            else:
                shutil.rmtree(path)  # half made

    def names(self) -> list[str]:
        return sorted(self._open)

    def get(self, name: str) -> Collection:
        if name not in self._open:
            raise Missing(f"Not found: Collection `{name}` doesn't exist!")
        return self._open[name]

    def create(self, message: Any) -> None:
        name = message.collection_name
        if name in self._open:
            raise There(f"Wrong input: Collection `{name}` already exists!")
        path = self._directory / quote(name, safe="")
        path.mkdir()
        self._open[name] = Collection(path, message)
        (path / "made").write_bytes(message.SerializeToString())

    def delete(self, name: str) -> bool:
        found = self._open.pop(name, None)
        if found is None:
            return False
        found.shard.close()
        shutil.rmtree(self._directory / quote(name, safe=""))
        return True

    def close(self) -> None:
        for collection in self._open.values():
            collection.shard.flush()
            collection.shard.close()


def _config(made: Any) -> qe.EdgeConfig:
    dense = {}
    asked = made.vectors_config
    if asked.WhichOneof("config") == "params":
        dense[""] = _dense(asked.params)
    for name, params in asked.params_map.map.items():
        dense[name] = _dense(params)
    sparse = {
        name: qe.EdgeSparseVectorParams(modifier=qe.Modifier.Idf if params.modifier == q.Modifier.Idf else None)
        for name, params in made.sparse_vectors_config.map.items()
    }
    return qe.EdgeConfig(vectors=dense or None, sparse_vectors=sparse or None, max_search_threads=1, wal_enabled=True)


def _dense(params: Any) -> qe.EdgeVectorParams:
    return qe.EdgeVectorParams(
        size=params.size, distance=forms.DISTANCES[params.distance], datatype=forms.DATATYPES[params.datatype]
    )
