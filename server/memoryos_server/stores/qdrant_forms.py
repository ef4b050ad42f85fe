"""Points, filters and questions as Qdrant's messages, and its answers as plain values."""

from __future__ import annotations

import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
from qdrant_client import grpc as q

from memoryos_server.stores.frames import LEXICAL

ROW = "r"
"""The field of an episode's row, beside those of `points`: `q`, `n`, `ts`, `f` and `p` of the payload, as JSON."""

DENSE_FIELDS = ("s", "ts", "te", "y", "v")
"""What the dense collections have of a payload: what filters need, and which version the vectors are of."""


def point_ids(ids: Iterable[str]) -> list[Any]:
    """Ids."""
    return [q.PointId(uuid=memory_id) for memory_id in ids]


def main_point(point: Mapping[str, Any]) -> Any:
    """A point of `points.pieces`, with its payload and terms; an episode also with the `row` that a search gives of it."""
    fields = point["payload"]
    if "q" in fields:
        fields = {**fields, ROW: row(fields)}
    return q.PointStruct(id=q.PointId(uuid=point["id"]), payload=payload(fields), vectors=terms(*point["sparse"]))


def row(fields: Mapping[str, Any]) -> str:
    """An episode's row as one text: taking hundreds of payloads apart field by field would cost more than the search."""
    return orjson.dumps([fields["q"], fields["n"], fields["ts"], fields["f"], fields["p"]]).decode()


def dense_point(memory_id: str, vectors: Mapping[str, bytes], fields: Mapping[str, Any]) -> Any:
    """What the dense collection keeps of a point: its vectors, and what filters need of its payload."""
    made = {name: q.Vector(dense=q.DenseVector(data=floats(raw))) for name, raw in vectors.items()}
    kept = {field: fields[field] for field in DENSE_FIELDS if field in fields}
    return q.PointStruct(
        id=q.PointId(uuid=memory_id), payload=payload(kept), vectors=q.Vectors(vectors=q.NamedVectors(vectors=made))
    )


def terms(indices: Sequence[int], values: Sequence[float]) -> Any:
    """Keyed terms as the vectors of a point; without any it has none."""
    made = {LEXICAL: q.Vector(sparse=q.SparseVector(indices=indices, values=values))} if indices else {}
    return q.Vectors(vectors=q.NamedVectors(vectors=made))


def floats(raw: bytes) -> array.array[float]:
    """A vector of float32 bytes."""
    vector = array.array("f")
    vector.frombytes(raw)
    return vector


def floats_of(numbers: Iterable[float]) -> bytes:
    """The float32 bytes of a vector."""
    return array.array("f", numbers).tobytes()


def payload(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A payload as `points` makes it."""
    return {field: _value(value) for field, value in fields.items()}


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return q.Value(string_value=value)
    if isinstance(value, int):
        return q.Value(integer_value=value)
    if isinstance(value, float):
        return q.Value(double_value=value)
    # Of one kind throughout, so that `plain` need not ask each.
    alike = map(float, value) if any(type(one) is float for one in value) else value
    return q.Value(list_value=q.ListValue(values=[_value(one) for one in alike]))


def plain(value: Any) -> Any:
    """What a payload's field holds: `payload` the other way round."""
    kind = value.WhichOneof("kind")
    if kind != "list_value":
        return getattr(value, kind) if kind else None
    values = value.list_value.values
    if not values:
        return []
    kind = values[0].WhichOneof("kind")
    return [getattr(one, kind) for one in values]


def including(fields: Sequence[str]) -> Any:
    """A selector of a payload's fields."""
    if not fields:
        return q.WithPayloadSelector(enable=False)
    return q.WithPayloadSelector(include=q.PayloadIncludeSelector(fields=fields))


def _field(key: str, **test: Any) -> Any:
    return q.Condition(field=q.FieldCondition(key=key, **test))


def equal(key: str, value: str | int) -> Any:
    """A condition: a field is, or holds, a value."""
    return _field(key, match=q.Match(keyword=value) if isinstance(value, str) else q.Match(integer=value))


def any_of(key: str, values: Sequence[str]) -> Any:
    """A condition: a field is, or holds, one of some values."""
    return _field(key, match=q.Match(keywords=q.RepeatedStrings(strings=values)))


def within(key: str, **bounds: float) -> Any:
    """A condition: a field is a number within bounds (`lt`, `lte`, `gt`, `gte`)."""
    return _field(key, range=q.Range(**bounds))


def is_one_of(ids: Iterable[str]) -> Any:
    """A condition: a point has one of some ids."""
    return q.Condition(has_id=q.HasIdCondition(has_id=point_ids(ids)))


def all_of(*conditions: Any, but_not: Sequence[Any] = ()) -> Any:
    """A filter of what meets all of some conditions and none of others."""
    return q.Filter(must=conditions, must_not=but_not)


def either(filters: Iterable[Any]) -> Any:
    """A filter of what meets any of some filters."""
    return q.Filter(should=[q.Condition(filter=one) for one in filters])


def matching(chosen: Mapping[str, Any]) -> Any:
    """A filter of what `points.chosen` makes; `edge_points.matching` says what that is."""
    must = [equal(field, chosen[field]) for field in ("s", "n", "y") if field in chosen]
    must += [equal("g", tag) for tag in chosen.get("all", ())]
    if "any" in chosen:
        must.append(any_of("g", chosen["any"]))
    if "src" in chosen:
        must.append(any_of("src", chosen["src"]))
    if "began" in chosen:
        must.append(within("ts", lte=chosen["began"]))
    if "cr" in chosen:
        must.append(within("cr", gte=chosen["cr"], lte=chosen["cr"]))
    return all_of(*must, but_not=[within("te", lte=chosen["at"])] if "at" in chosen else ())


def words_query(
    collection: str, corpus: str, chosen: Any, indices: Sequence[int], values: Sequence[float], limit: int
) -> Any:
    """A question by words. How rare a word is, is counted over the corpus."""
    return q.QueryPoints(
        collection_name=collection,
        query=q.Query(nearest=q.VectorInput(sparse=q.SparseVector(indices=indices, values=values))),
        using=LEXICAL,
        filter=chosen,
        params=q.SearchParams(idf=q.IdfParams(corpus=all_of(equal("s", corpus)))),
        limit=limit,
    )


def dense_query(collection: str, chosen: Any, name: str, raw: bytes, limit: int) -> Any:
    """A question by meaning."""
    return q.QueryPoints(
        collection_name=collection,
        query=q.Query(nearest=q.VectorInput(dense=q.DenseVector(data=floats(raw)))),
        using=name,
        filter=chosen,
        limit=limit,
    )


def behind(memory_id: str) -> str:
    """The first id behind one, to scroll on from; "" for the beginning."""
    return str(UUID(int=UUID(memory_id).int + 1)) if memory_id else ""
