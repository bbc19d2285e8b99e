#!/usr/bin/env bash
# A program that tests need: tests/debian.sh NAME[,OTHER NAME] PACKAGE... installs Debian's packages
# if there is none of these names and it may.
set -euo pipefail
for name in ${1//,/ }; do
  if command -v "$name" > /dev/null; then
    exit 0
  fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "These tests need $1. On Debian: apt-get install ${*:2}" >&2
  exit 1
fi
apt-get update --quiet
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${@:2}"
