"""The command that kills and resumes a run: what it compares, and that it leaves no process of the run."""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kill_and_resume as command


def test_metrics_are_compared_but_those_of_speed():
    whole = {"critic/score/mean": 0.5, "actor/kl_loss": 0.25, "timing_s/step": 3.0, "reward/clip_latency_s": 1.0}
    resumed = {"critic/score/mean": 0.5 + 1e-7, "actor/kl_loss": 0.5}
    slower = {"timing_s/step": 9.0, "reward/clip_latency_s": 2.0}
    assert command.differences(whole, whole | resumed | slower) == {"actor/kl_loss": 0.25}
    assert command.differences(whole, {}) == {"critic/score/mean": float("inf"), "actor/kl_loss": float("inf")}


def test_a_metric_that_is_no_number_in_one_run_differs():
    assert list(command.differences({"actor/kl_loss": 0.25}, {"actor/kl_loss": float("nan")})) == ["actor/kl_loss"]


def test_no_process_of_a_run_outlives_its_kill():
    orphan = "(sleep 600 & exec true) > /dev/null"  # its parent ends at once
    script = f"{orphan}; echo ready; read forever"
    run = subprocess.Popen(
        ["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert run.stdout.readline() == b"ready\n"
    assert len(command.members(run.pid)) == 2
    command.kill(run)
    assert command.members(run.pid) == []
