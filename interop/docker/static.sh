#!/usr/bin/env bash
# Builds programs of this workspace that run in an image of nothing else:
#
#     interop/docker/static.sh DIRECTORY PROGRAM...
#
# Statically linked, stripped, with debug assertions and failpoints; put into DIRECTORY. Whoever needs some gets
# them from here, so that they are compiled once: all of them together, since what is built alone has other features.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec </dev/null

readonly TARGET=${CARGO_TARGET_DIR:-target}
out=$1
shift
host=$(rustc -vV | sed -n 's/^host: //p')
# The target is named, though it is the host's own, so that the flag does not reach build scripts and macros. The
# flag needs all dependencies anew: without optimisation that takes a minute.
CARGO_INCREMENTAL=0 RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --locked \
  --bin trouble --bin wardkeep --bin code-search --bin wardkeep-faults --target "$host" --profile static \
  --config 'profile.static.inherits="dev"' --config 'profile.static.debug=false'
for program in "$@"; do
  strip -o "$out/$program" "$TARGET/$host/static/$program"
done
