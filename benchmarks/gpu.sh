#!/usr/bin/env bash
# Every measurement of docs/performance.md that needs a GPU of 80 GB or more, 8B shapes in bfloat16 with random weights.
#
#   bash benchmarks/gpu.sh [report.md]
#
# SIZE, VOCABULARY, BATCH and CANVAS change the settings, OPTIONS go to the benchmarks of models (such as
# "--device cpu --repeats 1"), PARTS names the parts to run: tests forward full gsm8k update step sync. Of the step, GSM8K
# is the folder of its rows (`python -m maskgrpo_plugin.data.prepare gsm8k`) and CONFIG its config.
set -euo pipefail
cd "$(dirname "$0")/.."
report=${1:-gpu_report.md}
size=${SIZE:-8b} vocabulary=${VOCABULARY:-126464} batch=${BATCH:-32} canvas=${CANVAS:-512}
config=${CONFIG:-llada_8b_gsm8k} rows=${GSM8K:-data/gsm8k}
read -ra options <<<"${OPTIONS:-}"

section() {
  [[ " ${PARTS:-tests forward full gsm8k update step sync} " == *" $1 "* ]] || return 0
  echo "## $2"
  shift 2
  echo
  echo '```'
  echo "$*"
  echo '```'
  echo
  "$@" || echo "failed with $?"
  echo
}

step() { # a whole run of two steps: 4 prompts with 6 completions each, on one device
  local scratch
  scratch=$(mktemp -d)
  python benchmarks/random_checkpoint.py --size "$size" --vocabulary "$vocabulary" --output-dir "$scratch" "${options[@]}" &&
    python benchmarks/step.py --config "$config" --ranks 1 --steps 2 actor_rollout_ref.model.path="$scratch" \
      data.train_files="$rows/train.parquet" data.val_files="$rows/validation.parquet" data.train_batch_size=4 \
      actor_rollout_ref.actor.ppo_mini_batch_size=4 ray_kwargs.ray_init.num_cpus=40 \
      reward.custom_reward_function.path=tests/e2e/varied_reward.py
  local status=$?
  rm -rf "$scratch"
  return $status
}

shape=(--size "$size" --vocabulary "$vocabulary" --canvas "$canvas" "${options[@]}")
attention=(sdpa)
if python -c "import flash_attn" 2>/dev/null; then attention+=(flash_attention_2); fi
{
  echo "# $(python -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", torch.__version__)')"
  echo
  section tests "Tests on a GPU" \
    python -m pytest -q tests/diffusion/test_remasking.py tests/models/test_tiles.py
  section forward "Forward pass: half of the matrix rate or more" \
    python benchmarks/forward.py "${shape[@]}" --batches 1 6 "$batch" --attention "${attention[@]}" --compile --mixed
  section full "Rollout, full answers: exact mode 1.3 times or more" \
    python benchmarks/rollout.py "${shape[@]}" --batch "$batch" --compile
  section gsm8k "Rollout, lengths like GSM8K's: exact mode 2 times or more, approximate mode 8 times or more" \
    python benchmarks/rollout.py "${shape[@]}" --batch "$batch" --lengths gsm8k --requests $((3 * batch)) --certain 0.25
  section update "Update under a frozen head: model FLOP utilisation 40 % or more" \
    python benchmarks/update.py "${shape[@]}" --batch 6 --checkpointing --frozen-head
  section step "Whole steps with LoRA, 24 completions" step
  section sync "Weight sync under LoRA" \
    python benchmarks/weight_sync.py --sizes "$size" --vocabulary "$vocabulary" --canvas "$canvas" --dtype bfloat16
} | tee "$report"
! grep -q '^failed with' "$report"
