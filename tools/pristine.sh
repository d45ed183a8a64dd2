#!/usr/bin/env bash
# What CI does, on a machine that has nothing: a minimal Debian in a folder of its own, a new HOME, an empty cache, a fresh
# clone of what is committed. Only the kernel, the network, Go and the trusted certificates are this machine's.
#
#   tools/pristine.sh                     bash .ci/run with CI=true; about 50 minutes on two cores and 25 GB
#   tools/pristine.sh COMMAND [WORD...]   another command in the clone
#   FINETUNE_PRISTINE=FOLDER              keep the tree there, and start from it again (default: a folder that is removed)
#
# Needs root, and Debian's debootstrap.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "pristine: needs root" >&2; exit 77; }
command -v debootstrap >/dev/null || { echo "pristine: apt-get install debootstrap" >&2; exit 69; }

tree=${FINETUNE_PRISTINE:-$(mktemp -d /var/tmp/finetune-pristine.XXXXXX)}
[ -n "${FINETUNE_PRISTINE:-}" ] || trap 'rm -rf --one-file-system "$tree"' EXIT
if [ ! -e "$tree/etc/debian_version" ]; then
  . /etc/os-release
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -1)
  echo "pristine: a minimal Debian $VERSION_CODENAME in $tree"
  debootstrap --variant=minbase --include=python3,python3-venv,git,make,ca-certificates \
    "$VERSION_CODENAME" "$tree" "$mirror" >"$tree.log" 2>&1 || { tail -20 "$tree.log" >&2; exit 1; }
  rm -f "$tree.log" "$tree"/etc/apt/sources.list
  cp -r /etc/apt/sources.list* /etc/apt/apt.conf.d "$tree/etc/apt/"
fi
rm -rf "$tree/checkout" "$tree/home/fresh"
mkdir -p "$tree/home/fresh" "$tree/host"
git clone -q --no-hardlinks . "$tree/checkout"
cp -L /etc/resolv.conf /etc/hosts "$tree/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"

go=$(go env GOROOT 2>/dev/null || true)
carried=$(env | grep -E '^(https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY|PIP_CERT|PIP_INDEX_URL|UV_[A-Z_]*|SSL_CERT_FILE|GOPROXY|GOFLAGS|GOSUMDB)=' || true)
export tree go carried
# shellcheck disable=SC2016  # expanded inside
exec_inside='
set -euo pipefail
mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"
mount --rbind /sys "$tree/sys"
mount --rbind /dev "$tree/dev"
mount -t tmpfs tmpfs "$tree/run"
if [ -n "$go" ]; then mkdir -p "$tree/opt/go"; mount --bind -o ro "$go" "$tree/opt/go"; fi
cd "$tree"
pivot_root . host
umount -l /host
mapfile -t words <<<"$carried"
exec env -i "${words[@]:-A=}" HOME=/home/fresh CI=true LANG=C.UTF-8 \
  PATH=/opt/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -c '\''cd /checkout && exec "$@"'\'' - "$@"
'
[ $# -gt 0 ] || set -- bash .ci/run
unshare --mount --pid --fork --kill-child --propagation private bash -c "$exec_inside" - "$@" </dev/null
