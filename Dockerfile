# syntax=docker/dockerfile:1
# Two flavours of one image. The steps are those of `make`, so that what runs here is what was tested.
#   docker build -t janus-serve .
#   docker build -t janus-serve:cuda --build-arg ACCEL=cuda .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS builder
ARG ACCEL=cpu
# Where the wheels of torch come from; docs/operations.md names the index of each flavour.
ARG TORCH_INDEX=""
WORKDIR /app
# For the C++ kernels, which are compiled as the package is installed; the image has no compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md ./
COPY docker docker
COPY janus_core janus_core
COPY server server
RUN --mount=type=cache,target=/root/.cache/pip \
    ACCEL="${ACCEL}" TORCH_INDEX="${TORCH_INDEX}" docker/install.sh /app/.venv

FROM python:${PYTHON}-slim
# The compiled parts of torch need OpenMP.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 janus \
    && install --directory --owner janus /models
COPY --from=builder /app /app
COPY weights/janus-mini /app/weights/janus-mini
WORKDIR /app
USER janus
ENV PATH=/app/.venv/bin:$PATH HF_HOME=/models JANUS_HOST=0.0.0.0 JANUS_PORT=8000 PYTHONUNBUFFERED=1
VOLUME /models
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["python", "/app/docker/healthcheck.py"]
ENTRYPOINT ["janus"]
CMD ["serve"]
