#!/usr/bin/env bash
# Make the digits models, train one by SFT and then by MaskGRPO on the CPU, and draw the learning curve.
#   bash examples/digits/run.sh [hydra overrides …]
# Environment: PYTHON (interpreter for the new environment), VENV (its folder), RUN_DIR (where the run is written),
# CONFIG (digits: text to image; digits_mmu: questions about images), SAMPLER (of digits: emerge or maskgit), SEED.
set -euo pipefail
cd "$(dirname "$0")/../.."
run=${RUN_DIR:-runs/digits} config=${CONFIG:-digits} sampler=${SAMPLER:-emerge} seed=${SEED:-0} extras="[digits]"
modules=sklearn
source examples/environment.sh
case $config in
  digits) model=model name=$sampler ;;
  digits_mmu) model=model_mmu name=mmu ;;
  *) echo "CONFIG=$config: allowed are digits, digits_mmu" >&2 && exit 2 ;;
esac
options=(digits_dir="$run" digits_seed="$seed")
export VERL_FILE_LOGGER_PATH=$run/digits_$name.jsonl
[ -f "$run/sft/train.parquet" ] || "$python" examples/digits/make_models.py --output-dir "$run" --seed "$seed"
[ -f "$run/$model/config.json" ] || VERL_FILE_LOGGER_PATH=$run/sft_$config.jsonl "$python" -m maskgrpo_plugin.sft \
  --config-name "sft_$config" "${options[@]}"
if [ "$config" = digits ]; then
  "$python" examples/digits/measure.py "$run"
  options+=(actor_rollout_ref.rollout.sampler.name="$sampler")
fi
"$python" -m maskgrpo_cli train "$config" trainer.default_local_dir="$run/$name" \
  "${options[@]}" "$@"
"$python" -m maskgrpo_plugin.learning_curve "$VERL_FILE_LOGGER_PATH" --output "$run/$name" \
  --metric val-core/ --metric critic/score/mean --metric reward/digits --metric actor/kl_loss
