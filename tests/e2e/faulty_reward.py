"""A reward that treats four samples in a row differently: scored, raising, hanging, and with a sandbox that is gone."""

import itertools
import time
from functools import partial

from maskgrpo_plugin import rewards
from maskgrpo_plugin.sandbox import SandboxConfig, score_program

PROGRAM = "```python\ndef f():\n    return 1\n```"
GONE = SandboxConfig(provider="sandbox_fusion", url="http://127.0.0.1:9/run_code", retries=0, retry_wait_s=0)

_calls = itertools.count()


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """By the number of the call: a score, an exception, no answer for an hour, or a program that nothing runs."""
    fate = next(_calls) % 4
    if fate == 1:
        raise OSError("the scorer's disk is gone")
    if fate == 2:
        time.sleep(3600)
    if fate == 3:
        return rewards.score("code", PROGRAM, ["assert f() == 1"], run=partial(score_program, config=GONE))
    return {"score": len(solution_str) / 100, "acc": 0.0}
