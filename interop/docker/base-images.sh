#!/usr/bin/env bash
# Sees to it that the images which the Dockerfile is built from are there:
#
#     interop/docker/base-images.sh
#
# One that the engine has, or can pull, is left as it is. Where there is none and none can be pulled, a stand-in
# of the same name is made: Debian by debootstrap, with a C compiler, and the Rust toolchain that is installed
# here. How cargo reaches its registry (its configuration, proxies, certificate authorities) is taken over from
# this machine; credentials are not. Needs Linux; for a stand-in also root, and debootstrap, which it installs.
# Stand-ins are labelled `wardkeep.stand-in`; `docker rmi` removes them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec </dev/null

readonly SUITE=bookworm
# Seconds that a registry of images may take to begin to answer, and to send an image.
readonly REACH=20 PULL=900
# Settings of the environment that say how registries are reached.
readonly REACHED_BY='^(https?|no|all|ftp)_proxy=|^CARGO_(HTTP|HTTPS|NET|SOURCE|REGISTRIES)_.*='

# The images that a Dockerfile begins with, but its own stages and the empty one.
bases() {
  awk 'toupper($1) == "FROM" { if ($2 != "scratch" && !($2 in stage)) print $2; stage[$4] }' Dockerfile | sort -u
}

# Pulls an image: 1 where that cannot be done.
pull() {
  # A manifest is small: whoever does not send it in a while will not send the image.
  timeout "$REACH" docker manifest inspect "$1" >/dev/null 2>&1 && timeout "$PULL" docker pull --quiet "$1"
}

install_debootstrap() {
  ! command -v debootstrap >/dev/null || return 0
  command -v apt-get >/dev/null || fail "debootstrap is needed, and there is no apt-get to install it with"
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends debootstrap
}

# Prints where this machine gets its Debian from, if it is one of the same release.
mirror() {
  ! command -v apt-get >/dev/null ||
    apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Codename: $SUITE" "Component: main" 2>/dev/null |
    head -n 1
}

# A Debian with a C compiler, in the directory `root`.
debian() {
  local mirrors
  mapfile -t mirrors < <(mirror)
  debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev "$SUITE" "$root" "${mirrors[@]}" \
    >"$work/debootstrap.log" 2>&1 || { tail -n 5 "$work/debootstrap.log" >&2; fail "debootstrap has failed"; }
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}
  # Whoever answers for the registries here does so there too.
  if [[ -d /usr/local/share/ca-certificates ]]; then
    cp -RL /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
  fi
}

# The toolchain, without what a build does not need, and how cargo is configured.
rust() {
  local sysroot home=${CARGO_HOME:-$HOME/.cargo}
  sysroot=$(rustc --print sysroot)
  tar -C "$sysroot" -c --exclude=lib/rustlib/src \
    bin/cargo bin/rustc lib | tar -C "$root/usr/local" -x --no-same-owner
  mkdir -p "$root/usr/local/cargo"
  if [[ -f $home/config.toml ]]; then
    cp "$home/config.toml" "$root/usr/local/cargo/"
  fi
}

# Makes the stand-in of an image of Rust.
stand_in() {
  local changes=(--change "LABEL wardkeep.stand-in=1" --change "ENV CARGO_HOME=/usr/local/cargo") setting
  root=$work/root
  install_debootstrap
  debian
  rust
  while read -r setting; do
    changes+=(--change "ENV ${setting%%=*}=\"${setting#*=}\"")
  done < <(env | grep -iE "$REACHED_BY" || true)
  tar -C "$root" -c . | docker import "${changes[@]}" - "$1" >/dev/null
}

fail() {
  echo "base-images.sh: $*" >&2
  exit 1
}

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

main() {
  local image
  docker info >/dev/null 2>&1 || fail "Docker does not answer"
  for image in $(bases); do
    if docker image inspect "$image" >/dev/null 2>&1; then
      echo "$image: there"
    elif pull "$image"; then
      echo "$image: pulled"
    else
      [[ $image == rust:*"$SUITE" ]] || fail "$image cannot be pulled, and there is no stand-in for it"
      [[ $(id -u) == 0 ]] || fail "$image cannot be pulled, and only root can make a stand-in"
      stand_in "$image"
      echo "$image: cannot be pulled; a stand-in was made, with $(rustc --version)"
    fi
  done
}

main
