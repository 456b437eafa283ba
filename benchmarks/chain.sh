#!/usr/bin/env bash
# Train the worked-sums model from random weights, on longer and longer problems, and evaluate it.
#   bash benchmarks/chain.sh [hydra overrides …]
# Environment: PYTHON (an interpreter with maskgrpo_plugin), RUN_DIR (where it is written), TASK (worked_2 or worked: stop
# early, in the second or the third stage, and leave the start of this task of examples/methods in $RUN_DIR/$TASK).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} run=${RUN_DIR:-runs/chain} task=${TASK:-}
[[ "$task" =~ ^(worked(_2)?)?$ ]] || { echo "TASK=$task is not usable; worked_2 or worked" >&2 && exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} TOKENIZERS_PARALLELISM=false
"$python" benchmarks/make_chain_model.py --output-dir "$run"
run=$(cd "$run" && pwd)
overrides=("$@")

# stage, the model it starts from, steps, longest row, and how the learning rate ends
train() {
  VERL_FILE_LOGGER_PATH=$run/stage_$1.jsonl "$python" -m maskgrpo_plugin.sft --config-dir benchmarks \
    --config-name sft_chain chain_dir="$run" stage="$1" model.path="$2" trainer.export_dir="$run/model_$1" \
    trainer.total_training_steps="$3" data.max_length="$4" optim.lr_scheduler_type="$5" "${overrides[@]}"
}
train 1 "$run/initial" 1500 35 constant
if [ -n "$task" ]; then
  train 2 "$run/model_1" 1200 58 constant
  last=2 rows=data_2
  if [ "$task" = worked ]; then
    train 3 "$run/model_2" 1000 111 constant
    last=3 rows=data
  fi
  mkdir -p "$run/$task"
  cp -rT "$run/model_$last" "$run/$task/model"
  cp -rT "$run/$rows" "$run/$task/data"
  exit
fi
train 2 "$run/model_1" 1800 58 constant
train 3 "$run/model_2" 2700 111 cosine
train 4 "$run/model_3" 2000 111 cosine
"$python" -m maskgrpo_plugin.evaluate --model "$run/model_4" --data "$run/data/validation.parquet" --lengths 64 --steps 64 \
  --block-length 16 --output-dir "$run/evaluation"
