#!/usr/bin/env bash
# Do the steps of the Dockerfile in a directory, without a container engine: files in the places the
# image gives them, installed by the same script, started by the same command, asked by the same
# health check. Proves the steps; base image and user are the engine's part.
#   docker/build.sh DIRECTORY
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
app=${1:?usage: docker/build.sh DIRECTORY}
mkdir -p "$app"
app=$(cd "$app" && pwd)

cp "$source"/{pyproject.toml,constraints.txt,README.md} "$app"
mkdir -p "$app/weights"
cp -r "$source"/{docker,janus_core,server} "$app"
cp -r "$source/weights/janus-mini" "$app/weights"
"$app/docker/install.sh" "$app/.venv"

export JANUS_HOST=127.0.0.1 JANUS_PORT=${JANUS_PORT:-8765} HF_HOME="$app/models"
"$app/.venv/bin/janus" serve &
server=$!
trap 'kill -TERM $server 2> /dev/null || true' EXIT
for _ in $(seq 120); do
    if "$app/.venv/bin/python" "$app/docker/healthcheck.py"; then
        echo "ready"
        kill -TERM $server
        wait $server
        exit 0
    fi
    sleep 1
done
echo "The server did not become ready within two minutes." >&2
exit 1
