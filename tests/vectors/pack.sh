#!/usr/bin/env bash
# Packs a folder of test data: tests/vectors/pack.sh FOLDER
#
# Writes vectors.tar.zst and SHA256SUMS beside this script. The same files always give the same archive: sorted names,
# no times, no owners. Needs GNU tar, zstd and sha256sum.
set -euo pipefail
export LC_ALL=C

folder=${1:?usage: tests/vectors/pack.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
cd "$folder"

files=$(find . -type f ! -name 'README*' | sed 's#^\./##' | sort)
sha256sum $files >"$here/SHA256SUMS"
tar --format=ustar --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=644 -cf - $files |
    zstd -19 --force --quiet -o "$here/vectors.tar.zst"
