# Sourced by the examples' run scripts: makes the virtual environment and sets python, run and the environment.
# Needs run (folder of the run); reads extras (such as "[digits]"), modules (that must be there beside verl), PYTHON, VENV.
venv=${VENV:-.venv}
python=$venv/bin/python
if [ ! -x "$python" ]; then python=${PYTHON:-python3}; fi
found=$("$python" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null) || found="not a Python that runs"
case $found in
  "Python 3.10" | "Python 3.11" | "Python 3.12") ;;
  *) echo "$python is $found; Python 3.10, 3.11 or 3.12 is needed: set PYTHON, such as PYTHON=python3.12" >&2 && exit 2 ;;
esac
if [ "$python" != "$venv/bin/python" ]; then "$python" -m venv "$venv"; fi
python=$venv/bin/python
# looked up and not imported, which takes ten seconds
installed='import sys; from importlib import metadata, util
metadata.version("maskgrpo_plugin"); sys.exit(any(util.find_spec(name) is None for name in sys.argv[1:]))'
if ! "$python" -c "$installed" verl ${modules:-} 2>/dev/null; then
  # the tested torch where there is no GPU; which one a GPU needs, its driver decides
  torch=
  if ! command -v nvidia-smi >/dev/null; then torch=torch==2.13.0; fi
  "$venv/bin/pip" install -q ${torch:+"$torch"} -e ".${extras:-}"
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} TOKENIZERS_PARALLELISM=false
mkdir -p "$run" && run=$(cd "$run" && pwd)
