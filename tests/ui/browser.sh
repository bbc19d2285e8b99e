#!/usr/bin/env bash
# A browser for the tests of the page. Installs Debian's Chromium if there is none and it may.
set -euo pipefail
if command -v chromium > /dev/null || command -v chromium-browser > /dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "These tests need Chromium, found as 'chromium'. On Debian: apt-get install chromium fonts-inter" >&2
  exit 1
fi
apt-get update --quiet
apt-get install --yes --no-install-recommends chromium fonts-inter
