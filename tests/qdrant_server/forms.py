"""Qdrant's messages as the Edge engine takes them, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import qdrant_edge as qe
from qdrant_client import grpc as q

DISTANCES = {
    q.Distance.Cosine: qe.Distance.Cosine,
    q.Distance.Dot: qe.Distance.Dot,
    q.Distance.Euclid: qe.Distance.Euclid,
    q.Distance.Manhattan: qe.Distance.Manhattan,
}
DATATYPES = {
    q.Datatype.Default: None,
    q.Datatype.Float32: qe.VectorStorageDatatype.Float32,
    q.Datatype.Uint8: qe.VectorStorageDatatype.Uint8,
    q.Datatype.Float16: qe.VectorStorageDatatype.Float16,
}
MODES = {
    q.UpdateMode.Upsert: qe.UpdateMode.Upsert,
    q.UpdateMode.InsertOnly: qe.UpdateMode.InsertOnly,
    q.UpdateMode.UpdateOnly: qe.UpdateMode.UpdateOnly,
}


class Unsupported(ValueError):
    """Something that Qdrant has, and this server does not."""


def point_id(given: Any) -> Any:
    return given.uuid if given.WhichOneof("point_id_options") == "uuid" else given.num


def to_point_id(given: Any) -> Any:
    return q.PointId(num=given) if isinstance(given, int) else q.PointId(uuid=str(given))


def value(given: Any) -> Any:
    kind = given.WhichOneof("kind")
    if kind in (None, "null_value"):
        return None
    if kind == "list_value":
        return [value(one) for one in given.list_value.values]
    if kind == "struct_value":
        return payload(given.struct_value.fields)
    return getattr(given, kind)


def payload(given: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value(one) for field, one in given.items()}


def to_value(given: Any) -> Any:
    if given is None:
        return q.Value(null_value=0)
    if isinstance(given, bool):
        return q.Value(bool_value=given)
    if isinstance(given, int):
        return q.Value(integer_value=given)
    if isinstance(given, float):
        return q.Value(double_value=given)
    if isinstance(given, str):
        return q.Value(string_value=given)
    if isinstance(given, list):
        return q.Value(list_value=q.ListValue(values=[to_value(one) for one in given]))
    return q.Value(struct_value=q.Struct(fields=to_payload(given)))


def to_payload(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {field: to_value(one) for field, one in (given or {}).items()}


def wanted(selector: Any) -> Any:
    kind = selector.WhichOneof("selector_options")
    if kind is None:
        return False
    if kind == "enable":
        return bool(selector.enable)
    if kind == "include":
        return list(selector.include.fields)
    raise Unsupported("with_payload.exclude")


def vector(given: Any) -> Any:
    kind = given.WhichOneof("vector")
    if kind == "sparse":
        return qe.SparseVector(list(given.sparse.indices), list(given.sparse.values))
    if kind == "dense":
        return list(given.dense.data)
    if kind is None and given.data:  # the form of older clients
        return (
            qe.SparseVector(list(given.indices.data), list(given.data))
            if given.HasField("indices")
            else list(given.data)
        )
    raise Unsupported(f"vector: {kind}")


def vectors(given: Any) -> dict[str, Any]:
    kind = given.WhichOneof("vectors_options")
    if kind is None:
        raise ValueError("Expected some vectors")
    if kind == "vector":
        return {"": vector(given.vector)}
    return {name: vector(one) for name, one in given.vectors.vectors.items()}


def _range(given: Any) -> qe.RangeFloat:
    bounds = {bound: getattr(given, bound) for bound in ("lt", "gt", "gte", "lte") if given.HasField(bound)}
    return qe.RangeFloat(**bounds)


def _match(given: Any) -> Any:
    kind = given.WhichOneof("match_value")
    if kind in ("keyword", "integer", "boolean"):
        return qe.MatchValue(getattr(given, kind))
    if kind == "keywords":
        return qe.MatchAny(list(given.keywords.strings))
    if kind == "integers":
        return qe.MatchAny(list(given.integers.integers))
    raise Unsupported(f"match: {kind}")


def _condition(given: Any) -> Any:
    kind = given.WhichOneof("condition_one_of")
    if kind == "filter":
        return condition(given.filter)
    if kind == "has_id":
        return qe.HasIdCondition({UUID(one.uuid) if one.uuid else one.num for one in given.has_id.has_id})
    if kind == "is_empty":
        return qe.IsEmptyCondition(given.is_empty.key)
    if kind != "field":
        raise Unsupported(f"condition: {kind}")
    field = given.field
    if field.HasField("match"):
        return qe.FieldCondition(field.key, match=_match(field.match))
    if field.HasField("range"):
        return qe.FieldCondition(field.key, range=_range(field.range))
    raise Unsupported("a field condition that is neither match nor range")


def condition(given: Any) -> qe.Filter:
    if given.HasField("min_should"):
        raise Unsupported("min_should")
    parts = {part: [_condition(one) for one in getattr(given, part)] for part in ("must", "should", "must_not")}
    return qe.Filter(**{part: made for part, made in parts.items() if made})


def condition_of(message: Any, field: str = "filter") -> qe.Filter | None:
    return condition(getattr(message, field)) if message.HasField(field) else None


def order(given: Any) -> qe.OrderBy:
    start = None
    if given.HasField("start_from"):
        kind = given.start_from.WhichOneof("value")
        if kind not in ("float", "integer"):
            raise Unsupported(f"start_from: {kind}")
        start = getattr(given.start_from, kind)
    return qe.OrderBy(given.key, qe.Direction.Desc if given.direction == q.Direction.Desc else qe.Direction.Asc, start)


def params(given: Any) -> qe.SearchParams | None:
    if not given.HasField("params"):
        return None
    asked = given.params
    idf = None
    if asked.HasField("idf"):
        idf = qe.IdfParams(corpus=condition_of(asked.idf, "corpus"))
    return qe.SearchParams(exact=asked.exact, idf=idf)


def query(given: Any) -> qe.QueryRequest:
    if given.prefetch or given.query.WhichOneof("variant") != "nearest":
        raise Unsupported("a query that is not for the nearest")
    near = given.query.nearest
    kind = near.WhichOneof("variant")
    if kind == "sparse":
        asked: Any = qe.SparseVector(list(near.sparse.indices), list(near.sparse.values))
    elif kind == "dense":
        asked = list(near.dense.data)
    else:
        raise Unsupported(f"nearest: {kind}")
    return qe.QueryRequest(
        limit=given.limit if given.HasField("limit") else 10,
        offset=given.offset or None,
        query=qe.Query.Nearest(asked, using=given.using or None),
        filter=condition_of(given),
        params=params(given),
        with_payload=wanted(given.with_payload),
    )


def to_scored(found: Iterable[Any]) -> list[Any]:
    return [
        q.ScoredPoint(id=to_point_id(hit.id), payload=to_payload(hit.payload), score=hit.score, version=hit.version)
        for hit in found
    ]


def to_vectors(given: Mapping[str, Any]) -> Any:
    made = {}
    for name, vector in given.items():
        if isinstance(vector, qe.SparseVector):
            made[name] = q.VectorOutput(sparse=q.SparseVector(indices=vector.indices, values=vector.values))
        else:
            made[name] = q.VectorOutput(dense=q.DenseVector(data=vector))
    return q.VectorsOutput(vectors=q.NamedVectorsOutput(vectors=made))


def wants_vectors(selector: Any) -> bool:
    kind = selector.WhichOneof("selector_options")
    if kind == "include":
        raise Unsupported("with_vectors.include")
    return kind == "enable" and bool(selector.enable)


def to_retrieved(record: Any) -> Any:
    made = q.RetrievedPoint(id=to_point_id(record.id), payload=to_payload(record.payload))
    if record.vector:
        made.vectors.CopyFrom(to_vectors(record.vector))
    if record.order_value is not None:
        made.order_value.CopyFrom(
            q.OrderValue(int=record.order_value)
            if isinstance(record.order_value, int)
            else q.OrderValue(float=record.order_value)
        )
    return made


def index(message: Any) -> Any:
    """The engine's parameters of a payload index."""
    asked = message.field_index_params
    kind = asked.WhichOneof("index_params") if message.HasField("field_index_params") else None
    if message.field_type == q.FieldType.FieldTypeKeyword:
        tenant = asked.keyword_index_params.is_tenant if kind == "keyword_index_params" else None
        return qe.KeywordIndexParams(is_tenant=tenant)
    if message.field_type == q.FieldType.FieldTypeInteger:
        if kind == "integer_index_params":
            integer = asked.integer_index_params
            return qe.IntegerIndexParams(lookup=integer.lookup, range=integer.range)
        return qe.IntegerIndexParams()
    if message.field_type == q.FieldType.FieldTypeFloat:
        return qe.FloatIndexParams()
    raise Unsupported(f"field_type {message.field_type}")
