#!/usr/bin/env bash
# On the machine with the card, in the tree's root: installs the kit's wheels into a folder and runs tests/gpu/run.py.
#   tests/gpu/lent.sh --out DIR [--budget 480] [--only PART …]        KIT: the folder of bundle.sh, default .gpu-kit
# Asks for no network and writes to DIR and a folder of its own alone; nothing of the card's settings is touched.
set -euo pipefail
cd "$(dirname "$0")/../.."
KIT=${KIT:-.gpu-kit}
site=$(mktemp -d)
for part in wheels beside; do
  python3 -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$site/$part" "$KIT/$part"/*.whl
done
python3 -m compileall -q -j 0 "$site" >/dev/null || true # or each of the kit's processes would do it again
export PYTHONPATH="$site/wheels${PYTHONPATH:+:$PYTHONPATH}" FINETUNE_GPU_KIT_DEEPSPEED="$site/beside"
export PYTHONUNBUFFERED=1
exec python3 tests/gpu/run.py "$@"
