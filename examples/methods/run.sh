#!/usr/bin/env bash
# Train every method on the same start model, prompts, rewards, rollouts and seeds, and write the table and the figure.
#   bash examples/methods/run.sh [hydra overrides …]
# It goes on where it was stopped. Environment: PYTHON, MINUTES (of one call, default 30), START (a folder with `model`
# and `data`, as the quickstart leaves it), RUN_DIR (where the lines are written), SEEDS, METHODS (default: all).
set -euo pipefail
cd "$(dirname "$0")/../.."
run=${RUN_DIR:-runs/methods} start=${START:-runs/quickstart} python=${PYTHON:-python}
read -ra seeds <<< "${SEEDS:-0 1 2}"
read -ra methods <<< "${METHODS:-}"
mkdir -p "$run"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # more make so small a model slower
end=$((SECONDS + 60 * ${MINUTES:-30}))

train() {
  "$python" examples/methods/train.py --model "$start/model" --data "$start/data" --output "$run/cells.jsonl" \
    ${methods[@]+--method "${methods[@]}"} --minutes $(((end - SECONDS) / 60)) "$@"
}

train --search "$@"
if [ $SECONDS -lt $end ]; then train --seed "${seeds[@]}" "$@"; fi
"$python" examples/methods/table.py "$run/cells.jsonl" --seeds ${#seeds[@]} --figure "$run/figure.png" | tee "$run/table.md"
