#!/usr/bin/env bash
# Pins what pyproject.toml asks for: names, versions and hashes, and nothing about where they came from.
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE=${FINETUNE_CACHE:-$HOME/.cache/finetune-operator}
uv=$(ls -d "$CACHE"/tools/uv-*/bin/uv | tail -1)
"$uv" pip compile pyproject.toml --universal --extra operator --extra trainer --extra qlora --extra trackers --extra dev --generate-hashes --no-emit-index-url --no-annotate --no-header \
  --python-version 3.11 -q -o requirements.lock
echo "lock: $(grep -c == requirements.lock) packages pinned in requirements.lock"
