#!/usr/bin/env bash
# Makes the folder of wheels that the machine with the card installs from: tests/gpu/bundle.sh [FOLDER]
# For Python 3.12 on x86-64 with CUDA 13.0; default folder .gpu-kit, which git ignores. Prints its size and refuses more
# than 48 MiB. Packages come from the index that pip is configured with; pins are in kit.txt beside this file.
set -euo pipefail
cd "$(dirname "$0")/../.."
FOLDER=${1:-.gpu-kit}
MOST=$((48 << 20))
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
platforms=()
for glibc in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64)

fetch() { # FOLDER NAME==VERSION…
  "$PYTHON" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -d "$1" "${@:2}"
}
pins() { sed -n "$1" tests/gpu/kit.txt | sed 's/ *#.*//' | grep == || true; }

rm -rf "$FOLDER.new" && mkdir -p "$FOLDER.new/wheels" "$FOLDER.new/beside"
mapfile -t wheels < <(pins '/# beside/!p')
mapfile -t beside < <(pins '/# beside/p')
fetch "$FOLDER.new/wheels" "${wheels[@]}"
for pin in "${beside[@]}"; do # DeepSpeed comes as source alone; without its kernels it is plain Python
  fetch "$FOLDER.new/beside" "$pin" 2>/dev/null ||
    DS_BUILD_OPS=0 "$PYTHON" -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation \
      -w "$FOLDER.new/beside" "$pin"
done
# Of bitsandbytes' kernels, those for the one CUDA version that is there: 4 MB instead of 43.
"$PYTHON" tests/gpu/slim.py "$FOLDER.new"/wheels/bitsandbytes-*.whl --keep libbitsandbytes_cuda130.so libbitsandbytes_cpu.so

size=$(cat "$FOLDER.new"/*/*.whl | wc -c)
echo "kit: $(ls "$FOLDER.new"/*/*.whl | wc -l) wheels, $(awk "BEGIN {printf \"%.1f\", $size / 1048576}") MiB in $FOLDER"
if [ "$size" -gt "$MOST" ]; then
  echo "kit: that is more than the $((MOST >> 20)) MiB which leave room for the tree; take a package out of kit.txt" >&2
  rm -rf "$FOLDER.new"
  exit 1
fi
rm -rf "$FOLDER" && mv "$FOLDER.new" "$FOLDER"
