# shellcheck shell=bash
# Sourced by ray_cluster.sh and slurm.sbatch, or run as `bash ray_functions.sh start_worker HEAD_ADDRESS`: brings up a
# Ray head and workers, and trains on them.
# Reads PYTHON (python), RAY_PORT (6379), RAY_TMPDIR (Ray's own folder, a short path), RAY_ARGS (further arguments of
# `ray start`; on the CPU "--num-cpus=16 --num-gpus=1", where the latter counts training ranks), CONFIG, CONFIG_DIR.
# Ray 2.60 lets only those in who know the cluster's token: RAY_AUTH_TOKEN, the same on all machines.
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
python=${PYTHON:-python} port=${RAY_PORT:-6379}
read -r -a ray_arguments <<<"--disable-usage-stats ${RAY_TMPDIR:+--temp-dir=$RAY_TMPDIR} ${RAY_ARGS:-}"

start_head() { # start_head ADDRESS: in the foreground, until it is stopped
  exec "$python" -m ray.scripts.scripts start --head --node-ip-address="$1" --port="$port" --include-dashboard=false \
    --block "${ray_arguments[@]}"
}

start_worker() { # start_worker HEAD_ADDRESS [OWN_ADDRESS]: in the foreground, until it or the head is stopped
  exec "$python" -m ray.scripts.scripts start --address="$1:$port" ${2:+--node-ip-address="$2"} --block \
    "${ray_arguments[@]}"
}

wait_for_nodes() { # wait_for_nodes HEAD_ADDRESS NODES [SECONDS]: fails where they are not there in time
  "$python" - "$1:$port" "$2" "${3:-300}" <<'PYTHON'
import sys
import time

import ray

address, nodes, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
deadline, alive = time.monotonic() + limit, 0
while alive < nodes:
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {nodes} Ray nodes at {address} within {limit:.0f} s")
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        alive = sum(node["Alive"] for node in ray.nodes())
    except ConnectionError:
        pass
    time.sleep(2)
PYTHON
}

train() { # train HEAD_ADDRESS NODES [hydra overrides …]: verl's entry point; Ray's resources are the cluster's
  local address=$1:$port nodes=$2
  shift 2
  RAY_ADDRESS=$address "$python" -m verl.trainer.main_ppo ${CONFIG_DIR:+--config-dir "$CONFIG_DIR"} \
    --config-name "${CONFIG:-llada_8b_gsm8k}" trainer.nnodes="$nodes" \
    ++ray_kwargs.ray_init.num_cpus=null ++ray_kwargs.ray_init.num_gpus=null "$@"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then "$@"; fi
