#!/usr/bin/env bash
# Makes .venv from requirements.lock: every package pinned by version and hash, kept in a cache that checkouts share.
#   PYTHON   the interpreter (3.11 or later)        FINETUNE_CACHE   default ~/.cache/finetune-operator
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE=${FINETUNE_CACHE:-$HOME/.cache/finetune-operator}
PYTHON=${PYTHON:-python3}
UV_VERSION=0.13.9
stamp=$(cat requirements.lock pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1)
[ "$(cat .venv/.stamp 2>/dev/null)" = "$stamp" ] && exit 0

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: $("$PYTHON" -V) is too old; Python 3.11 or later is needed (set PYTHON=/path/to/python3.11)" >&2; exit 78; }
uv="$CACHE/tools/uv-$UV_VERSION/bin/uv"
if [ ! -x "$uv" ]; then
  rm -rf "$CACHE/tools/uv-$UV_VERSION"
  "$PYTHON" -m venv "$CACHE/tools/uv-$UV_VERSION"
  "$CACHE/tools/uv-$UV_VERSION/bin/pip" install -q "uv==$UV_VERSION"
fi
export UV_CACHE_DIR="$CACHE/uv" UV_PYTHON_DOWNLOADS=never
echo "setup: installing the pinned packages into .venv (the first time fetches about 3 GB, mostly torch)"
[ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || "$uv" venv -q --clear --seed --python "$("$PYTHON" -c 'import sys; print(sys.executable)')" .venv
"$uv" pip sync -q --python .venv/bin/python --require-hashes requirements.lock
"$uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
.venv/bin/python -m compileall -q -j 2 .venv/lib >/dev/null 2>&1 || true
echo "$stamp" >.venv/.stamp
