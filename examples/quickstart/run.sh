#!/usr/bin/env bash
# Make a small diffusion model and its data, train it by MaskGRPO on the CPU, and draw the learning curve.
#   bash examples/quickstart/run.sh [hydra overrides …]
# Environment: PYTHON (interpreter for the new environment), VENV (its folder), RUN_DIR (where the run is written),
# CONFIG (quickstart, quickstart_block for block diffusion, or quickstart_ar for the autoregressive baseline), SEED.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=${RUN_DIR:-runs/quickstart} config=${CONFIG:-quickstart} seed=${SEED:-0}
source examples/environment.sh
export VERL_FILE_LOGGER_PATH=$run/$config.jsonl
[ -f "$run/sft/train.parquet" ] || "$python" -m maskgrpo_plugin.quickstart --output-dir "$run" --seed "$seed"
case $config in quickstart_ar | quickstart_block) kind=${config#quickstart} ;; *) kind= ;; esac
model=model$kind sft=sft_quickstart$kind
# one thread: more make so small a model slower
[ -f "$run/$model/config.json" ] || OMP_NUM_THREADS=1 VERL_FILE_LOGGER_PATH=$run/$sft.jsonl "$python" -m maskgrpo_plugin.sft \
  --config-name "$sft" quickstart_dir="$run" quickstart_seed="$seed"
"$python" -m maskgrpo_cli train "$config" quickstart_dir="$run" quickstart_seed="$seed" "$@"
"$python" -m maskgrpo_plugin.learning_curve "$VERL_FILE_LOGGER_PATH" --output "$run/$config"
