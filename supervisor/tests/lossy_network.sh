#!/usr/bin/env bash
# Runs a command in a network namespace of its own, beside a second one that is reached over a network which
# loses packets:
#
#     lossy_network.sh PERCENT COMMAND...
#
# The command's side is 10.99.0.1. FAR_SIDE in its environment is a process in the other namespace, whose
# side is 10.99.0.2: `nsenter --net=/proc/$FAR_SIDE/ns/net COMMAND...` runs something there. So many packets of
# a hundred are lost each way. Needs root, ip, nft, unshare and nsenter; the network of the machine is not
# touched, and nothing is left when the command ends.
set -euo pipefail

if [[ ${1:-} != --inside ]]; then
  exec unshare --net -- "$0" --inside "$@"
fi
percent=$2
shift 2

unshare --net -- sleep infinity &
export FAR_SIDE=$!
trap 'kill "$FAR_SIDE"' EXIT
until [[ $(readlink "/proc/$FAR_SIDE/ns/net") != "$(readlink /proc/self/ns/net)" ]]; do
  sleep 0.01
done
far() {
  nsenter --net="/proc/$FAR_SIDE/ns/net" "$@"
}

ip link add near type veth peer name far
ip link set far netns "$FAR_SIDE"
ip address add 10.99.0.1/24 dev near
far ip address add 10.99.0.2/24 dev far
ip link set lo up
ip link set near up
far ip link set lo up
far ip link set far up

lose() {
  "$@" nft add table inet lossy
  "$@" nft add chain inet lossy input '{ type filter hook input priority 0; }'
  "$@" nft add rule inet lossy input iifname != lo numgen random mod 100 '<' "$percent" drop
}
lose env
lose nsenter --net="/proc/$FAR_SIDE/ns/net"

"$@"
