"""A reward whose calls, in turn, give a number, raise, hang, and lose their sandbox; each writes its kind to a file."""

import itertools
import time

from maskgrpo_plugin.rewards.sandbox import SandboxConfig, score_program

KINDS = ("works", "raises", "hangs", "loses its sandbox")
NOWHERE = SandboxConfig(provider="sandbox_fusion", url="http://127.0.0.1:9/run_code")
_calls = itertools.count()


def compute_score(data_source, solution_str, ground_truth, extra_info=None, log=None):
    """1, where it gives a number."""
    kind = KINDS[next(_calls) % len(KINDS)]
    with open(log, "a", encoding="utf-8") as file:
        file.write(kind + "\n")
    if kind == "raises":
        raise RuntimeError("injected")
    if kind == "hangs":
        time.sleep(3600)
    if kind == "loses its sandbox":
        score_program("print(1)", ["assert True"], config=NOWHERE)
    return {"score": 1.0, "acc": 1.0}
