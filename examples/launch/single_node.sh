#!/usr/bin/env bash
# Train on one machine, on all its GPUs.
#   CONFIG=llada_8b_math bash examples/launch/single_node.sh [hydra overrides …]
# Environment: CONFIG (its name; default llada_8b_gsm8k), CONFIG_DIR (a folder of your own configs), GPUS (default: as
# many as nvidia-smi lists; without any, the config's), PYTHON (interpreter with the plugin installed; default python).
set -euo pipefail
cd "$(dirname "$0")/../.."
config=${CONFIG:-llada_8b_gsm8k}
gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)}
overrides=(trainer.nnodes=1)
if [ "$gpus" -gt 0 ]; then overrides+=(trainer.n_gpus_per_node="$gpus"); fi
exec "${PYTHON:-python}" -m verl.trainer.main_ppo ${CONFIG_DIR:+--config-dir "$CONFIG_DIR"} --config-name "$config" \
  "${overrides[@]}" "$@"
