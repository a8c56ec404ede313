#!/usr/bin/env bash
# Starts the cluster of docker-compose.yml, breaks it as an operator might, and takes it away again:
#
#     interop/docker/compose.sh
#
# With the images that are there, or those of images.sh. First as it is, with two nodes of one kind; then with the
# supervisor that has the engine's socket: a container that is killed and one that is paused are started anew, and
# answers keep coming meanwhile. Ends with 1 at the first thing that is not so. Needs docker-compose, or the plugin.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec </dev/null

export COMPOSE_PROJECT_NAME=wardkeep-test-$$
DOCKER_GID=$(stat -c %g /var/run/docker.sock)
export DOCKER_GID
readonly QUERY='{"query":"fn main","limit":3}'
# Seconds that a thing may take.
readonly PATIENCE=${PATIENCE:-90}

compose() {
  if command -v docker-compose >/dev/null; then
    docker-compose --profile docker-launcher "$@"
  else
    docker compose --profile docker-launcher "$@"
  fi
}

fail() {
  echo "compose.sh: $*" >&2
  exit 1
}

cleanup() {
  local code=$?
  trap - EXIT
  [[ $code == 0 ]] || compose logs --tail 20 >&2 || true
  compose down --volumes --timeout 5 >/dev/null 2>&1 || true
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The command, in the supervisor's container.
wardkeep() {
  compose exec -T "$supervisor" /wardkeep "$@"
}

# Repeats a check until it holds: until_so WHAT COMMAND...
until_so() {
  local end=$((SECONDS + PATIENCE))
  until "${@:2}" >/dev/null 2>&1; do
    ((SECONDS < end)) || fail "$1: not within $PATIENCE s"
    sleep 0.3
  done
  echo "$1: ok"
}

# Whether so many nodes attend and are well.
well() {
  [[ $(wardkeep node ls -o json | grep -o '"verdict":"healthy"' | wc -l) == "$1" ]]
}

call() {
  wardkeep call wardkeep.examples.v1.Search/Search "$QUERY" -n 3
}

container() {
  compose ps -q "$1" | head -n 1
}

# The name of a service's node: it is called after its container.
node() {
  echo "$1-$(container "$1" | cut -c 1-12)"
}

# Whether the story of a service's node has that its container was started anew.
tells() {
  wardkeep explain "$(node "$1")" | grep -q "its launcher's container"
}

docker info >/dev/null 2>&1 || { echo "skipped: Docker does not answer"; exit 0; }
docker image inspect wardkeep wardkeep-code-search >/dev/null 2>&1 || interop/docker/images.sh

supervisor=supervisor
compose up --no-build --detach --scale scan=2 supervisor scan trigram sqlite >/dev/null 2>&1 || fail "up"
until_so "four nodes, two of them alike" well 4
until_so "a call" call
wardkeep status
compose stop --timeout 20 supervisor >/dev/null 2>&1
compose rm --force supervisor >/dev/null 2>&1

supervisor=supervisor-with-docker
compose up --no-build --detach "$supervisor" >/dev/null 2>&1 || fail "up, with the engine's socket"
until_so "three nodes and the engine's socket" well 3
docker kill "$(container scan)" >/dev/null
docker pause "$(container trigram)" >/dev/null
for _ in 1 2 3 4 5; do
  call >/dev/null || fail "a call, with one node killed and one paused"
done
echo "calls, with one node killed and one paused: ok"
for service in scan trigram; do
  until_so "$service started anew, and explained" tells "$service"
done
until_so "three nodes again" well 3
