# MemoryOS in one image: `up` (everything in one container), `serve` and `bridge` (apart).
# Every package comes from a lock with hashes; the embedding model is built here, so that nothing is built or fetched at run time.
FROM python:3.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/memoryos
WORKDIR /src
COPY requirements.lock requirements-otel.lock ./
RUN /opt/memoryos/bin/python -m pip install --no-deps --require-hashes -r requirements.lock
RUN /opt/memoryos/bin/python -m pip install --no-deps --require-hashes -r requirements-otel.lock
COPY pyproject.toml README.md LICENSE NOTICE CHANGELOG.md ./
COPY clients/python clients/python
COPY server server
COPY bridge bridge
RUN /opt/memoryos/bin/python -m pip install --no-deps --no-build-isolation .
RUN /opt/memoryos/bin/python -c "import asyncio, pathlib; from memoryos_server.tools.embed.minilm import prepare; asyncio.run(prepare(pathlib.Path('/opt/models'), print))"

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="MemoryOS" org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 memoryos \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/memoryos --shell /usr/sbin/nologin memoryos \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/memoryos /var/lib/memoryos-keys
COPY --from=build /opt/memoryos /opt/memoryos
COPY --from=build /opt/models /opt/models
ENV PATH=/opt/memoryos/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MEMORYOS_DATA_DIR=/var/lib/memoryos/data \
    MEMORYOS_SECURITY__KEY_DIR=/var/lib/memoryos-keys \
    MEMORYOS_EMBEDDING__CACHE_DIR=/opt/models \
    MEMORYOS_LOG__FORMAT=json
USER 10001:10001
WORKDIR /var/lib/memoryos
VOLUME ["/var/lib/memoryos", "/var/lib/memoryos-keys"]
EXPOSE 8080 50051 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["memoryos"]
CMD ["up"]
