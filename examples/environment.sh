# Sourced by the examples' run scripts: makes the virtual environment and sets python, run and the environment.
# Needs run (folder of the run) and extras (such as "[digits]", may be empty); reads PYTHON and VENV.
venv=${VENV:-.venv}
if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
fi
python=$venv/bin/python
if ! "$python" -c "import maskgrpo_plugin, verl ${modules:-}" 2>/dev/null; then
  # CPU build of torch first, where there is no GPU: another package would bring the CUDA build
  if ! command -v nvidia-smi >/dev/null; then "$venv/bin/pip" install -q torch==2.13.0; fi
  "$venv/bin/pip" install -q -e ".${extras:-}"
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} TOKENIZERS_PARALLELISM=false
mkdir -p "$run" && run=$(cd "$run" && pwd)
