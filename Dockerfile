# syntax=docker/dockerfile:1
# Two images, of which an engine builds only what is asked for:
#   docker build -t janus-serve .                          (or --target cpu)
#   docker build -t janus-serve:cuda --target cuda .
# What installs is docker/install.sh. docker/prove.sh carries these instructions out without an
# engine; it knows FROM, ARG, WORKDIR, COPY, RUN, ENV, USER and what follows, in the forms used here.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS builder
# For the C++ kernels, which are compiled as the package is installed; the image has no compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY docker docker
COPY janus_core janus_core
COPY server server

FROM builder AS builder-cpu
# Where the wheels of torch come from; docs/operations.md says how to find the index of each target.
ARG TORCH_INDEX=""
RUN --mount=type=cache,target=/root/.cache/pip ACCEL=cpu docker/install.sh /app/.venv

FROM builder AS builder-cuda
ARG TORCH_INDEX=""
RUN --mount=type=cache,target=/root/.cache/pip ACCEL=cuda docker/install.sh /app/.venv

FROM python:${PYTHON}-slim AS runtime
# The compiled parts of torch need OpenMP.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 janus \
    && install --directory --owner janus /models
WORKDIR /app
COPY weights/janus-mini weights/janus-mini
# Nothing is written but /models (downloads) and /tmp: the root may be read-only.
ENV PATH=/app/.venv/bin:/usr/local/bin:/usr/bin:/bin HF_HOME=/models JANUS_HOST=0.0.0.0 JANUS_PORT=8000 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR=/tmp/triton
LABEL org.opencontainers.image.title="Janus Serve" \
    org.opencontainers.image.description="An OpenAI-compatible server for DeepSeek Janus and Janus-Pro" \
    org.opencontainers.image.documentation="docs/operations.md"
USER 1000
VOLUME /models
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["python", "/app/docker/healthcheck.py"]
ENTRYPOINT ["janus"]
CMD ["serve"]

FROM runtime AS cuda
# Triton compiles the program that launches a kernel at its first launch, with a C compiler, and keeps
# it in its cache: that must be on a place from which libraries can be loaded.
USER 0
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 1000
COPY --from=builder-cuda /app /app

FROM runtime AS cpu
COPY --from=builder-cpu /app /app
