#!/usr/bin/env bash
# Train every method on the same start model, prompts, rewards, rollouts and seeds, and write the table and the figure.
#   bash examples/methods/run.sh [hydra overrides …]
# It goes on where it was stopped. Environment: PYTHON, MINUTES (of one call, default 30), START (a folder with `model`
# and `data`, as the quickstart leaves it), COUNTDOWN, SUDOKU, WORKED_2 and WORKED (the same for these tasks, which are
# left out without; docs/methods.md says how they are made), RUN_DIR (where the lines are written), SEEDS, METHODS
# (default: all).
set -euo pipefail
cd "$(dirname "$0")/../.."
run=${RUN_DIR:-runs/methods} python=${PYTHON:-python}
declare -A start=([sums]=${START:-runs/quickstart} [countdown]=${COUNTDOWN:-} [sudoku]=${SUDOKU:-} [worked_2]=${WORKED_2:-} [worked]=${WORKED:-})
read -ra seeds <<< "${SEEDS:-0 1 2}"
read -ra methods <<< "${METHODS:-}"
overrides=("$@")
mkdir -p "$run"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # more make so small a model slower
end=$((SECONDS + 60 * ${MINUTES:-30}))

train() { # task, options
  local task=$1 minutes=$(((end - SECONDS) / 60))
  shift
  if [ "$minutes" -gt 0 ] && [ -n "${start[$task]}" ]; then
    "$python" examples/methods/train.py --task "$task" --model "${start[$task]}/model" --data "${start[$task]}/data" \
      ${methods[@]+--method "${methods[@]}"} "$@" --output "$run/cells.jsonl" --minutes "$minutes" "${overrides[@]}"
  fi
}

train sums --search
for task in sums countdown sudoku worked_2 worked; do train "$task" --seed "${seeds[@]}"; done
"$python" examples/methods/table.py "$run/cells.jsonl" --seeds ${#seeds[@]} --figure "$run/figure.png" | tee "$run/table.md"
