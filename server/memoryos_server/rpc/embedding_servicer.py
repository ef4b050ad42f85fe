"""EmbeddingService over gRPC: converts in, calls the use case, converts out."""

from __future__ import annotations

from typing import Any

import grpc

from memoryos.v1 import embedding_service_pb2 as pb
from memoryos_server.domain.chat.embeddings import EmbeddingService
from memoryos_server.rpc.convert import optional

_Context = grpc.aio.ServicerContext[Any, Any]


class EmbeddingServicer:
    """Serves memoryos.v1.EmbeddingService."""

    def __init__(self, embeddings: EmbeddingService) -> None:
        self._embeddings = embeddings

    async def CreateEmbeddings(
        self, request: pb.CreateEmbeddingsRequest, _context: _Context
    ) -> pb.CreateEmbeddingsResponse:
        """Gives a vector for each text."""
        made = await self._embeddings.embed(
            request.model,
            request.input_json,
            packed=request.encoding_format == pb.ENCODING_FORMAT_BASE64,
            dimensions=optional(request, "dimensions"),
        )
        data = [pb.Embedding(object="embedding", index=n, embedding_json=v) for n, v in enumerate(made.vectors)]
        usage = pb.EmbeddingUsage(prompt_tokens=made.tokens, total_tokens=made.tokens)
        return pb.CreateEmbeddingsResponse(object="list", data=data, model=made.model, usage=usage)
