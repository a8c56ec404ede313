#!/usr/bin/env bash
# The same failure is one group, whatever build it happens in and on whatever machine, and each time it
# has an ID of its own:
#
#     interop/builds/same_group.sh
#
# Builds `trouble` for debugging, for release, and static and stripped; runs each here, and the static one
# in two containers too if Docker answers; lets each fail in the same four ways; prints a line per failure.
# Ends with 1 if a group differs or an ID does not. Needs Linux, Rust and binutils; leaves only build output.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec </dev/null

readonly KINDS=(WELL_FORMED BARE_STATUS INTERNAL_STATUS PANIC)
readonly SERVICE=wardkeep.examples.v1.Trouble
readonly TARGET=${CARGO_TARGET_DIR:-target}
# Names of what is made in Docker.
readonly OURS=wardkeep-trouble-test-$$
# Tenths of a second that anything started here may take to be ready.
readonly PATIENCE=300

export CARGO_INCREMENTAL=0
unset WARDKEEP_SUPERVISOR WARDKEEP_LOG_FORMAT RUST_LOG

# ------------------------------------------------------------------------------------------- the builds

# Three binaries from one source, unlike in optimisation, debug information, symbols and linking.
build() {
  cargo build --locked --bin trouble --bin wardkeep
  cargo build --locked --release --bin trouble
  mkdir "$work/static"
  interop/docker/static.sh "$work/static" trouble wardkeep
}

# ------------------------------------------------------------------------------------ what runs them here

# Starts a program of ours whose output goes to $work/NAME.log: start NAME PROGRAM ARGUMENT...
start() {
  "${@:2}" >"$work/$1.log" 2>&1 &
  pids+=($!)
}

# Prints the address that NAME says it listens on.
listens() {
  local address
  for ((i = 0; i < PATIENCE; i++)); do
    address=$(sed -n 's/^listening on //p; s/.*supervisor up.* address=\([^ ]*\).*/\1/p' "$work/$1.log" | head -n 1)
    if [[ -n $address ]]; then
      echo "http://$address"
      return
    fi
    sleep 0.1
  done
  cat "$work/$1.log" >&2
  fail "$1 does not say where it listens"
}

wardkeep() {
  "$TARGET/debug/wardkeep" "$@"
}

# -------------------------------------------------------------------------------------------- containers

# One image of nothing but the two static binaries, a network, a supervisor in it.
containers() {
  tar -C "$work/static" -c trouble wardkeep | docker import - "$OURS" >/dev/null
  docker network create "$OURS" >/dev/null
  container supervisor 7400 /wardkeep serve supervisor --listen 0.0.0.0:7400 --insecure
}

# Starts a container whose PORT is published on this machine's loopback: container NAME PORT COMMAND...
container() {
  docker run --detach --name "$OURS-$1" --hostname "$1" --network "$OURS" --publish "127.0.0.1::$2" \
    "$OURS" "${@:3}" >/dev/null
}

# Prints where the PORT of container NAME is reached from here.
published() {
  echo "http://$(docker port "$OURS-$1" "$2/tcp" | head -n 1)"
}

# ---------------------------------------------------------------------------------------- the comparison

# Prints a field of a JSON document on one line.
field() {
  sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"
}

# Lets the node of a build fail in each way, and asks its supervisor which group that is:
# ask BUILD NODE-ADDRESS SUPERVISOR-ADDRESS
ask() {
  local build=$1 node=$2 supervisor=$3 kind id group
  ready "$build" health --address "$node" --service "$SERVICE"
  for kind in "${KINDS[@]}"; do
    id=$({ wardkeep call "$SERVICE/Make" "{\"kind\": \"$kind\"}" --address "$node" -o json || true; } 2>&1 | field id)
    [[ -n $id ]] || fail "$build: $kind was not answered with an error that has an ID"
    # The node tells its supervisor a moment later.
    ready "$build: $kind, error $id" error show "$id" --supervisor "$supervisor"
    group=$(wardkeep error show "$id" --supervisor "$supervisor" -o json | field group_hash)
    printf '%-12s %-16s %-20s %s\n' "$build" "$kind" "$group" "$id" | tee -a "$work/table"
  done
}

# Repeats a question to the command until it is answered well: ready WHAT ARGUMENT...
ready() {
  for ((i = 0; i < PATIENCE; i++)); do
    ! wardkeep "${@:2}" >"$work/answer" 2>&1 || return 0
    sleep 0.1
  done
  cat "$work/answer" >&2
  fail "$1: not in $((PATIENCE / 10)) s"
}

# Fails unless each kind is one group, and no ID was given twice.
compare() {
  local kind groups bad=""
  for kind in "${KINDS[@]}"; do
    groups=$(awk -v kind="$kind" '$2 == kind { print $3 }' "$work/table" | sort -u)
    if [[ $(wc -l <<<"$groups") != 1 || $groups != g* ]]; then
      echo "$kind: not one group but: ${groups//$'\n'/ }" >&2
      bad=1
    fi
  done
  if [[ -n $(awk '{ print $4 }' "$work/table" | sort | uniq -d) ]]; then
    echo "two failures share an ID" >&2
    bad=1
  fi
  [[ -z $bad ]] || exit 1
  echo "each failure is one group in all builds, and has an ID of its own"
}

# ----------------------------------------------------------------------------------------------- plumbing

fail() {
  echo "same_group.sh: $*" >&2
  exit 1
}

work=$(mktemp -d)
pids=()
docker=""

on_exit() {
  local code=$? pid name
  trap - EXIT
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null || true
  done
  wait
  if [[ -n $docker ]]; then
    for name in supervisor container-1 container-2; do
      docker rm --force --volumes "$OURS-$name" >/dev/null 2>&1 || true
    done
    docker network rm "$OURS" >/dev/null 2>&1 || true
    docker rmi --force "$OURS" >/dev/null 2>&1 || true
  fi
  rm -rf "$work"
  exit "$code"
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

main() {
  [[ $(uname -s) == Linux ]] || fail "a static build needs Linux"
  build
  printf '%-12s %-16s %-20s %s\n' build kind group_hash id
  start supervisor "$TARGET/debug/wardkeep" serve supervisor --listen 127.0.0.1:0
  local supervisor name program
  supervisor=$(listens supervisor)
  for name in debug release static; do
    program=$TARGET/$name/trouble
    [[ $name != static ]] || program=$work/static/trouble
    start "$name" "$program" --listen 127.0.0.1:0 --name "$name" --supervisor "$supervisor"
    ask "$name" "$(listens "$name")" "$supervisor"
  done
  if docker info >/dev/null 2>&1; then
    docker=1
    containers
    supervisor=$(published supervisor 7400)
    for name in container-1 container-2; do
      container "$name" 7500 /trouble --listen 0.0.0.0:7500 --insecure --name "$name" \
        --supervisor "http://$OURS-supervisor:7400"
      ask "$name" "$(published "$name" 7500)" "$supervisor"
    done
  else
    printf '%-12s skipped: Docker does not answer\n' container-1 container-2
  fi
  compare
}

main
