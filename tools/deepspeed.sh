#!/usr/bin/env bash
# DeepSpeed for its tests, in a folder of the cache beside .venv: in .venv, PEFT would import it at every start.
# Prints the folder, which belongs at the end of PYTHONPATH.
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE=${FINETUNE_CACHE:-$HOME/.cache/finetune-operator}
PACKAGES=(deepspeed==0.19.8 hjson==3.1.0 ninja==1.13.2 msgpack==1.2.4 py-cpuinfo==9.0.0 einops==0.8.2)
folder="$CACHE/deepspeed-0.19.8"
if [ ! -d "$folder" ]; then
  uv=$(ls -d "$CACHE"/tools/uv-*/bin/uv | tail -1)
  export UV_CACHE_DIR="$CACHE/uv" UV_PYTHON_DOWNLOADS=never DS_BUILD_OPS=0
  rm -rf "$folder.new"
  "$uv" pip install -q --python .venv/bin/python --target "$folder.new" --no-deps --no-build-isolation "${PACKAGES[@]}" >&2
  mv "$folder.new" "$folder"
fi
echo "$folder"
