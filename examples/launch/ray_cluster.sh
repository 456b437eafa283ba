#!/usr/bin/env bash
# Train on several machines that reach one another: one command on each, in the same checkout and environment.
#   NODES=2 CONFIG=llada_8b_math bash examples/launch/ray_cluster.sh head ADDRESS [hydra overrides …]   # trains
#   bash examples/launch/ray_cluster.sh worker HEAD_ADDRESS [OWN_ADDRESS]                  # ends with the head
# First, on each, the same secret: export RAY_AUTH_TOKEN=…, made once by `openssl rand -hex 32`. Data, model and
# trainer.default_local_dir must be on a file system that all machines share. For the rest of the environment see
# ray_functions.sh; NODES counts the head too.
set -euo pipefail
cd "$(dirname "$0")/../.."
source examples/launch/ray_functions.sh
role=${1:?head or worker} address=${2:?address of the head}
shift 2
export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:?the same secret on all machines, made by: openssl rand -hex 32}
case $role in
  head)
    (start_head "$address") &
    head=$!
    trap 'kill "$head" 2>/dev/null || true; wait "$head" || true' EXIT
    wait_for_nodes "$address" "${NODES:?number of machines}"
    train "$address" "$NODES" "$@"
    ;;
  worker) start_worker "$address" "$@" ;;
  *) echo "head or worker, not $role" >&2 && exit 2 ;;
esac
