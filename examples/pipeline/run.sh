#!/usr/bin/env bash
# From random weights to an aligned model on the CPU: supervised training, MaskGRPO, and an evaluation of each stage.
#   bash examples/pipeline/run.sh [hydra overrides of the RL run …]
# Environment: PYTHON (interpreter for the new environment), VENV (its folder), RUN_DIR (where the run is written), SEED.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=${RUN_DIR:-runs/pipeline} seed=${SEED:-0}
source examples/environment.sh

"$python" -m maskgrpo_plugin.quickstart --output-dir "$run" --seed "$seed"
# one thread: more make so small a model slower
OMP_NUM_THREADS=1 VERL_FILE_LOGGER_PATH=$run/sft.jsonl "$python" -m maskgrpo_plugin.sft --config-name sft_quickstart \
  quickstart_dir="$run" quickstart_seed="$seed"
VERL_FILE_LOGGER_PATH=$run/rl.jsonl "$python" -m maskgrpo_cli train quickstart \
  quickstart_dir="$run" quickstart_seed="$seed" trainer.val_before_train=false trainer.test_freq=-1 "$@"
for stage in initial model checkpoints; do
  "$python" -m maskgrpo_plugin.evaluate --model "$run/$stage" --data "$run/data/validation.parquet" --lengths 8 \
    --steps 8 --block-length 4 --output-dir "$run/evaluation/$stage" > /dev/null
done
"$python" examples/pipeline/table.py "$run/evaluation"
