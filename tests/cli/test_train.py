"""`maskgrpo train` over a stand-in for verl's command: what is on the screen, what is in the log, how it ends."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskgrpo_cli import screen as screen_module
from maskgrpo_cli.child import last_traceback
from maskgrpo_cli.metrics import MetricsFile, duration, stamp, step_parts, validation_text
from maskgrpo_cli.screen import MOST_LINES, Screen
from maskgrpo_cli.train import watch

FAKE = Path(__file__).with_name("fake_run.py")


def run(folder, kind, *, live=False):
    """Watch the stand-in; returns its status and what is on the screen."""
    stream = io.StringIO()
    status = watch([sys.executable, str(FAKE), str(folder), kind], Screen(stream, live=live))
    return status, stream.getvalue()


def test_a_run_is_shown_in_a_few_plain_lines_and_logged_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(screen_module, "PIPED_SECONDS", 0.0)
    status, shown = run(tmp_path, "good")
    lines = shown.splitlines()
    assert status == 0 and len(lines) <= 20, shown
    assert "model    some/model (masked_diffusion)" in lines and "steps    3" in lines
    assert "data     4,000 rows to train on, 16 × 8 completions per step" in lines
    assert "added    trainer.logger=[console,file]" in lines and "starting Ray" in lines
    assert "validation at step 0: sums acc 0.250" in lines and "validation at step 3: sums acc 0.750" in lines
    (first,) = [line for line in lines if line.startswith("step 1/3")]
    assert first == (
        "step 1/3  reward 0.5  accuracy 0.5  KL 0.0125  tokens/s 200  step 2.5 s (rollout 1.2, update 0.8)  left 5 s"
    )
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/3", "2/3", "3/3"]
    (done,) = [line for line in lines if line.startswith("done after ")]
    assert done.endswith("; validation: sums acc 0.250 → sums acc 0.750")
    log = tmp_path / "run" / "train.log"
    assert f"the whole output: {log}" in lines and f"checkpoints: {tmp_path}/run" in lines
    assert log.read_text().count("noise\n") == 500 and "noise of another package" in log.read_text()


def test_warnings_of_the_plugin_are_shown_once_and_without_control_characters(tmp_path):
    _, shown = run(tmp_path, "good")
    warnings = [line for line in shown.splitlines() if line.startswith("warning: ")]
    assert warnings == ["warning: 1 of 8 rewards failed at step 1", "warning: the disk is nearly full"]
    assert "\x1b" not in shown and "\r" not in shown


def test_on_a_terminal_the_steps_are_one_live_line(tmp_path):
    _, shown = run(tmp_path, "good", live=True)
    assert "\x1b[" in shown and "step 3/3" in shown
    lasting = [line for line in shown.splitlines() if "validation at step" in line]
    assert len(lasting) == 2


def test_a_second_run_adds_to_the_log_and_does_not_show_the_first_ones_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 77, "data": {"critic/score/mean": 1.0}}\n')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").write_text("earlier\n")
    _, shown = run(tmp_path, "good")
    assert "77" not in shown.replace(str(tmp_path), "") and "step 3/3" in shown
    assert (tmp_path / "run" / "train.log").read_text().startswith("earlier\n")


def test_a_setting_that_is_refused_is_the_line_that_is_shown(tmp_path):
    status, shown = run(tmp_path, "refused")
    assert status == 2
    assert "optim.lr=-1 is not usable; allowed: numbers more than 0" in shown.splitlines()
    assert "noise" not in shown and "train.log" not in shown


def test_a_crash_shows_the_runs_own_traceback_whole_and_the_log(tmp_path):
    status, shown = run(tmp_path, "crash")
    assert status == 1
    own = 'Traceback (most recent call last):\n  File "main_ppo.py", line 7, in main\n'
    assert own in shown and "RuntimeError: step 2: 9 of 16 completions are lost\n" in shown
    assert "KeyError" not in shown and "HYDRA_FULL_ERROR" not in shown
    assert "the run ended with status 1 at step 3" in shown
    assert f"the whole output: {tmp_path}/run/train.log" in shown


def test_a_crash_before_anything_is_known_shows_its_traceback_and_where_the_output_is(tmp_path):
    status, shown = run(tmp_path, "broken")
    assert status == 1 and "ValueError: before anything is known" in shown
    log = Path(shown.splitlines()[-1].removeprefix("the whole output: "))
    assert "noise of another package" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    ("kind", "error"), [("waits", ""), ("interrupted", ""), ("hangs", "RuntimeError: of a run that does not end")]
)
def test_ctrl_c_ends_the_run_cleanly_and_the_status_is_its_own(tmp_path, kind, error):
    script = (
        "import sys; from maskgrpo_cli.train import watch; from maskgrpo_cli.screen import Screen; "
        f"sys.exit(watch([sys.executable, {str(FAKE)!r}, {str(tmp_path)!r}, {kind!r}], Screen(sys.stdout)))"
    )
    command = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "waiting").exists():
        assert command.poll() is None
        time.sleep(0.05)
    os.kill(command.pid, signal.SIGINT)
    shown, _ = command.communicate(timeout=60)
    assert command.returncode == 130, shown
    assert "stopped at step 3" in shown and ("Traceback" in shown) == bool(error) and error in shown
    assert "cleaned up" in (tmp_path / "run" / "train.log").read_text()


def test_there_are_never_more_lasting_lines_than_the_limit():
    stream = io.StringIO()
    screen = Screen(stream)
    for n in range(500):
        screen.line(f"validation {'x' * n}")
    screen.line("done", last=True)
    lines = stream.getvalue().splitlines()
    assert len(lines) <= MOST_LINES and lines[-1] == "done" and lines[-2] == "further lines are in the log alone"


def test_steps_that_come_fast_are_not_all_written_where_nobody_watches(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(screen_module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    screen = Screen(stream)
    for step in range(10):
        screen.step(f"step {step}", {})
        now[0] += 1.0
    screen.step("step 10", {}, last=True)
    assert stream.getvalue().split() == ["step", "0", "step", "5", "step", "10"]


def test_only_whole_lines_of_the_metrics_are_read_and_a_new_beginning_is_seen(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 9, "data": {"a": 1}}\n')
    file = MetricsFile(path, stamp(path))
    assert file.read() == []  # of an earlier run
    path.write_text('{"step": 1, "data": {"a": 1, "b": "text", "c": NaN}}\nnonsense\n{"step": 2, ')
    assert [(row.step, row.data) for row in file.read()] == [(1, {"a": 1.0})]
    with path.open("a") as more:
        more.write('"data": {"a": 2}}\n')
    assert [(row.step, row.data) for row in file.read()] == [(2, {"a": 2.0})]
    path.write_text('{"step": 1, "data": {}}\n')
    assert [row.step for row in file.read()] == [1]


def test_what_is_shown_of_a_step_is_what_is_there():
    assert step_parts({}) == {}
    found = step_parts({"actor/pg_clipfrac": 0.0042, "reward/lost_samples": 0.0, "reward/failed_samples": 3.0})
    assert found == {"clipped": "0.4 %", "failed": "3"}
    assert validation_text({f"val-core/d{n}/acc/mean@1": 0.5 for n in range(6)}).endswith("d3 acc 0.500, and 2 more")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (11_100, "3 h 05 min"), (5340, "89 min")]
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_an_error_is_shown_with_those_that_it_arose_from():
    first = ["Traceback (most recent call last):", "  File a", "KeyError: 1", ""]
    link = ["The above exception was the direct cause of the following exception:", ""]
    second = ["Traceback (most recent call last):", "  File b", "RuntimeError: 2"]
    assert last_traceback([*first, "unrelated", *second]) == "\n".join(second)
    assert last_traceback([*first, *link, *second]) == "\n".join([*first, *link, *second])
    assert last_traceback(["(Worker pid=7) " + line for line in second]) == "\n".join(second)
    assert last_traceback(["nothing"]) == ""
