#!/usr/bin/env bash
# A virtual environment for one rival of the benchmarks, made once in the cache: tools/rivals.sh trl|llamafactory|axolotl
# Prints its interpreter. Packages are those that the rival's own metadata resolves to (tests/benchmarks/trainer/rivals),
# except what .venv has in the very same version: that, and torch with its libraries, is read from .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE=${FINETUNE_CACHE:-$HOME/.cache/finetune-operator}
pins="tests/benchmarks/trainer/rivals/$1.txt"
version=$(sed -n "s/^$1==//p" "$pins")
folder="$CACHE/rivals/$1-$version"
stamp=$(sha256sum "$pins" | cut -d' ' -f1)-$(readlink -f .venv)
if [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ]; then
  uv=$(ls -d "$CACHE"/tools/uv-*/bin/uv | tail -1)
  export UV_CACHE_DIR="$CACHE/uv" UV_PYTHON_DOWNLOADS=never
  "$uv" venv -q --clear --python .venv/bin/python "$folder" >&2
  # Our packages are installed as links in .pth files, which a borrowed folder does not follow: they stay invisible.
  .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
  "$uv" pip install -q --python "$folder/bin/python" --no-deps --compile-bytecode -r "$pins" >&2
  echo "$stamp" >"$folder/.stamp"
fi
echo "$folder/bin/python"
