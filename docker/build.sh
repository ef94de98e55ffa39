#!/bin/sh
# Builds the image without a container engine and without a registry: build.sh DIRECTORY "CLOUDS" TAG
#
# The base is made by mmdebstrap under the very name that the Dockerfile's FROM has; buildah builds by chroot, with plain
# directories as storage. The machine's settings for pip and its CA certificates are mounted for the time of a step.
set -eu
work=$1 clouds=$2 tag=$3
here=$(cd "$(dirname "$0")/.." && pwd)
base=docker.io/library/debian:bookworm-slim
b() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }

mkdir -p "$work"
if ! b inspect --type image "$base" >/dev/null 2>&1; then
    # What the slim images leave out, too. With merged /usr at once: else a package does it, and brings Perl for that.
    [ -e "$work/base.tar" ] || mmdebstrap --quiet --variant=minbase --include=ca-certificates,usr-is-merged \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' bookworm "$work/base.tar"
    container=$(b from scratch)
    b add "$container" "$work/base.tar" / >/dev/null
    b commit --quiet --rm "$container" "$base" >/dev/null
fi
mounts="--volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro"
[ ! -e /etc/pip.conf ] || mounts="$mounts --volume /etc/pip.conf:/etc/pip.conf:ro"
# shellcheck disable=SC2086
b bud --quiet --isolation chroot --network host --pull-never --layers=false $mounts --build-arg CLOUDS="$clouds" \
    --build-arg REVISION="$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)" \
    --file "$here/docker/Dockerfile" --tag "$tag" "$here"
container=$(b from --pull-never "$tag")
mounted=$(b mount "$container")
bytes=$(du -sb --apparent-size "$mounted" | cut -f1)
packed=$(tar -C "$mounted" -cf - . | gzip -c | wc -c)
echo "image with $clouds: $((bytes / 1000000)) MB unpacked, $((packed / 1000000)) MB compressed"
b rm "$container" >/dev/null
