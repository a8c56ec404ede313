#!/usr/bin/env bash
# Makes the images of docker-compose.yml quickly, from binaries that are built here:
#
#     interop/docker/images.sh
#
# The final stages are the Dockerfile's, taken from it; only the stage that builds is another one. So the images are
# what `docker-compose build` makes, but not optimised, with failpoints, and with no more to search than this source.
# For tests of the cluster; what is to be used is built by the Dockerfile itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec </dev/null

work=$(mktemp -d)
readonly BUILT=wardkeep-built-$$
cleanup() {
  docker rmi --force "$BUILT" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$work/out/data"
interop/docker/static.sh "$work/out" wardkeep code-search
mkdir "$work/out/corpus"
git ls-files -z -- '*.rs' '*.md' '*.toml' | tar --null -T - -c | tar -C "$work/out/corpus" -x
chmod -R a+rX "$work/out"
tar -C "$work" -c out | docker import - "$BUILT" >/dev/null
{
  echo "FROM $BUILT AS build"
  sed -n '/^FROM scratch AS code-search/,$p' Dockerfile
} >"$work/Dockerfile"
for image in wardkeep-code-search:code-search wardkeep:wardkeep; do
  docker build --quiet --target "${image#*:}" --tag "${image%:*}" - <"$work/Dockerfile" >/dev/null
  echo "${image%:*}: made"
done
