#!/usr/bin/env bash
# Install the server into a virtual environment: what the image's build stage runs.
#   ACCEL=cpu|cuda TORCH_INDEX=... docker/install.sh .venv
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:?usage: docker/install.sh VENV}
python=${PYTHON:-python3}

case "${ACCEL:=cpu}" in
    cpu | cuda) ;;
    *) echo "ACCEL must be cpu or cuda, but is ${ACCEL}." >&2; exit 2 ;;
esac

# pip reads pins for the build backend from the environment only.
export PIP_CONSTRAINT=$PWD/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
"$python" -m venv "$venv"
# torch first and by itself: whatever comes after finds the pinned one and cannot pull another.
"$venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
"$venv/bin/pip" install --quiet --editable .
if [ "$ACCEL" = cuda ]; then
    "$venv/bin/python" -c 'import torch; assert torch.version.cuda, "this torch has no CUDA"'
fi
"$venv/bin/janus" --help > /dev/null
