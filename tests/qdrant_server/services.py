"""Qdrant's gRPC services, as far as MemoryOS calls them, on the Edge engine.

The engine holds the interpreter's lock in every call, so calls are done one at a time, in the order in which they come.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import qdrant_edge as qe
from qdrant_client import grpc as q

from tests.qdrant_server import forms
from tests.qdrant_server.collections import Collections, Missing, There


def _answering(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    @functools.wraps(method)
    async def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return method(self, request)
        except Missing as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except There as error:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        except forms.Unsupported as error:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
        except Exception as error:  # the engine raises bare Exception
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Wrong input: {error}")

    return call


class Root(q.QdrantServicer):
    """Who is there."""

    def __init__(self, version: str) -> None:
        self._version = version

    @_answering
    def HealthCheck(self, request: Any) -> Any:  # gRPC's name
        return q.HealthCheckReply(title="qdrant - vector search engine", version=self._version)


class CollectionCalls(q.CollectionsServicer):
    """Collections."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections

    @_answering
    def Create(self, request: Any) -> Any:
        self._collections.create(request)
        return q.CollectionOperationResponse(result=True)

    @_answering
    def Get(self, request: Any) -> Any:
        return q.GetCollectionInfoResponse(result=self._collections.get(request.collection_name).info())

    @_answering
    def List(self, request: Any) -> Any:
        names = self._collections.names()
        return q.ListCollectionsResponse(collections=[q.CollectionDescription(name=name) for name in names])

    @_answering
    def CollectionExists(self, request: Any) -> Any:
        exists = request.collection_name in self._collections.names()
        return q.CollectionExistsResponse(result=q.CollectionExists(exists=exists))

    @_answering
    def Delete(self, request: Any) -> Any:
        return q.CollectionOperationResponse(result=self._collections.delete(request.collection_name))


class PointCalls(q.PointsServicer):
    """Points."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections

    def _shard(self, request: Any) -> qe.EdgeShard:
        return self._collections.get(request.collection_name).shard

    def _update(self, shard: qe.EdgeShard, operation: qe.UpdateOperation) -> Any:
        shard.update(operation)
        return q.PointsOperationResponse(result=q.UpdateResult(status=q.UpdateStatus.Completed))

    @_answering
    def CreateFieldIndex(self, request: Any) -> Any:
        self._collections.get(request.collection_name).index(request)
        return q.PointsOperationResponse(result=q.UpdateResult(status=q.UpdateStatus.Completed))

    @_answering
    def Upsert(self, request: Any) -> Any:
        points = [
            qe.Point(forms.point_id(one.id), forms.vectors(one.vectors), forms.payload(one.payload))
            for one in request.points
        ]
        condition = forms.condition_of(request, "update_filter")
        mode = forms.MODES[request.update_mode]
        return self._update(self._shard(request), qe.UpdateOperation.upsert_points(points, condition, mode))

    @_answering
    def Delete(self, request: Any) -> Any:
        return self._update(self._shard(request), _deletion(request.points))

    @_answering
    def Get(self, request: Any) -> Any:
        ids = [forms.point_id(one) for one in request.ids]
        found = self._shard(request).retrieve(ids, with_payload=forms.wanted(request.with_payload), with_vector=False)
        return q.GetResponse(result=[forms.to_retrieved(one) for one in found])

    @_answering
    def UpdateVectors(self, request: Any) -> Any:
        points = [qe.PointVectors(forms.point_id(one.id), forms.vectors(one.vectors)) for one in request.points]
        operation = qe.UpdateOperation.update_vectors(points, forms.condition_of(request, "update_filter"))
        return self._update(self._shard(request), operation)

    @_answering
    def SetPayload(self, request: Any) -> Any:
        return self._update(self._shard(request), _setting(request))

    @_answering
    def UpdateBatch(self, request: Any) -> Any:
        shard, done = self._shard(request), []
        for one in request.operations:
            kind = one.WhichOneof("operation")
            if kind == "set_payload":
                operation = _setting(one.set_payload)
            elif kind == "delete_points":
                operation = _deletion(one.delete_points.points)
            else:
                raise forms.Unsupported(f"operation: {kind}")
            done.append(self._update(shard, operation).result)
        return q.UpdateBatchResponse(result=done)

    @_answering
    def Query(self, request: Any) -> Any:
        return q.QueryResponse(result=forms.to_scored(self._shard(request).query(forms.query(request))))

    @_answering
    def QueryBatch(self, request: Any) -> Any:
        asked = [forms.query(one) for one in request.query_points]
        found = self._shard(request).query_batch(qe.QueryBatchRequest(asked)) if asked else []
        return q.QueryBatchResponse(result=[q.BatchResult(result=forms.to_scored(hits)) for hits in found])

    @_answering
    def Scroll(self, request: Any) -> Any:
        ordered = request.HasField("order_by")
        found, more = self._shard(request).scroll(
            qe.ScrollRequest(
                offset=forms.point_id(request.offset) if request.HasField("offset") else None,
                limit=request.limit if request.HasField("limit") else 10,
                filter=forms.condition_of(request),
                with_payload=forms.wanted(request.with_payload),
                with_vector=forms.wants_vectors(request.with_vectors),
                order_by=forms.order(request.order_by) if ordered else None,
            )
        )
        answer = q.ScrollResponse(result=[forms.to_retrieved(one) for one in found])
        if more is not None and not ordered:
            answer.next_page_offset.CopyFrom(forms.to_point_id(more))
        return answer

    @_answering
    def Count(self, request: Any) -> Any:
        asked = qe.CountRequest(exact=True, filter=forms.condition_of(request))
        return q.CountResponse(result=q.CountResult(count=self._shard(request).count(asked)))


def _deletion(selector: Any) -> qe.UpdateOperation:
    if selector.WhichOneof("points_selector_one_of") == "filter":
        return qe.UpdateOperation.delete_points_by_filter(forms.condition(selector.filter))
    return qe.UpdateOperation.delete_points([forms.point_id(one) for one in selector.points.ids])


def _setting(request: Any) -> qe.UpdateOperation:
    payload, selector = forms.payload(request.payload), request.points_selector
    if selector.WhichOneof("points_selector_one_of") == "filter":
        return qe.UpdateOperation.set_payload_by_filter(forms.condition(selector.filter), payload)
    return qe.UpdateOperation.set_payload([forms.point_id(one) for one in selector.points.ids], payload)
