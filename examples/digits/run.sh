#!/usr/bin/env bash
# Make the digits models, train the text-to-image model by MaskGRPO on the CPU, and draw the learning curve.
#   bash examples/digits/run.sh [hydra overrides …]
# Environment: PYTHON (interpreter for the new environment), VENV (its folder), RUN_DIR (where the run is written),
# SAMPLER (emerge or maskgit), SEED.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=${RUN_DIR:-runs/digits} sampler=${SAMPLER:-emerge} seed=${SEED:-0} extras="[digits]" modules=", sklearn"
source examples/environment.sh
export VERL_FILE_LOGGER_PATH=$run/digits_$sampler.jsonl
[ -f "$run/model/config.json" ] || "$python" examples/digits/make_models.py --output-dir "$run" --seed "$seed"
"$python" -m verl.trainer.main_ppo --config-dir configs --config-name digits digits_dir="$run" digits_seed="$seed" \
  actor_rollout_ref.rollout.sampler.name="$sampler" trainer.default_local_dir="$run/$sampler" "$@"
"$python" -m maskgrpo_plugin.learning_curve "$VERL_FILE_LOGGER_PATH" --output "$run/$sampler" \
  --metric val-core/ --metric critic/score/mean --metric reward/digits --metric actor/kl_loss
