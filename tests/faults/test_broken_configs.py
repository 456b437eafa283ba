"""Broken configs end on the driver in one line that names the key, or file and row; whole ones are not refused.

`python -m pytest tests/faults/test_broken_configs.py -k counts -s` prints how many of each section are refused.
"""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))
import ranks
from broken_rows import FILES, ROWS, good_rows, write_jsonl
from broken_settings import SECTIONS
from config_bases import Bases, parse

from maskgrpo_plugin import validation
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.workers.rollout import prompt_checks

SETTINGS = [(name, line) for name, lines in SECTIONS.items() for line in lines.strip().splitlines()]


@pytest.fixture(scope="session")
def bases(tiny_run):
    """The composed configs of the quickstart's folder."""
    return Bases(tiny_run)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Relative paths of overrides are the repository's."""
    monkeypatch.chdir(ranks.ROOT)


@pytest.fixture(scope="session")
def outcomes(bases):
    """What the driver says of each broken setting, found once: {line: (refused, said, seconds)}."""
    found = {}

    def find(line):
        if line not in found:
            started = time.monotonic()
            refused, said = bases.outcome(line)
            found[line] = (refused, said, time.monotonic() - started)
        return found[line]

    return find


@pytest.fixture(scope="session")
def broken_rows(bases, tmp_path_factory):
    """The error of the quickstart with rows broken as `ROWS[name]` says, or None, found once."""
    found = {}

    def find(name):
        if name not in found:
            file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
            write_jsonl(ROWS[name][0](good_rows()), file)
            found[name] = bases.refused(f"data.train_files={file}")
        return found[name]

    return find


@pytest.mark.parametrize("line", [line for _, line in SETTINGS])
def test_a_broken_setting_is_refused_by_its_key(outcomes, line):
    refused, said, _ = outcomes(line)
    assert refused, said


@pytest.mark.parametrize("name", list(ROWS))
def test_broken_rows_are_refused_by_file_and_row(broken_rows, name):
    error, expected = broken_rows(name), ROWS[name][1]
    assert error is not None
    assert expected in str(error) and len(str(error).splitlines()) == 1
    assert "rows.jsonl" in str(error) or not expected.startswith("row")


@pytest.mark.parametrize("name", list(FILES))
def test_broken_files_are_refused_by_name(bases, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    error = bases.refused(f"data.train_files={tmp_path / name}")
    assert error is not None and error.key == "data.train_files" and name in str(error)


WHOLE = [
    "data.max_prompt_length=7 data.filter_overlong_prompts=true data.train_batch_size=4 "
    "actor_rollout_ref.actor.ppo_mini_batch_size=4 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32",
    "actor_rollout_ref.rollout.top_k=0 actor_rollout_ref.rollout.top_p=1.0",
    "actor_rollout_ref.rollout.n=1 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16 "
    "actor_rollout_ref.rollout.temperature=0",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=48 "
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=7",
    "actor_rollout_ref.actor.use_dynamic_bsz=true actor_rollout_ref.actor.ppo_max_token_len_per_gpu=24",
    "actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.target_modules=all-linear",
    "actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.model.target_modules='.*(q_proj|ff_out)'",
    "actor_rollout_ref.actor.use_kl_loss=false actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=null",
    "reward.custom_reward_function.path=tests/e2e/varied_reward.py",
    "reward.custom_reward_function.path=tests/e2e/varied_reward.py +reward.custom_reward_function.reward_kwargs.x=1",
    "trainer.save_freq=-1 trainer.resume_mode=disable",
    "trainer.total_training_steps=null trainer.test_freq=-1 trainer.save_freq=0 trainer.max_actor_ckpt_to_keep=2",
    "trainer.logger=console trainer.experiment_name=7 data.seed=null",
    "trainer.v1.trainer_mode=maskgrpo_colocate_async +trainer.v1.maskgrpo_colocate_async.num_warmup_batches=1.5",
    "+trainer.remove_previous_ckpt_in_save=true +data.cache_dir=/tmp/x +my_own_value=3 +own.section.x=1",
    "+actor_rollout_ref.rollout.custom.x=1 +actor_rollout_ref.actor.optim.override_optimizer_config={eps: 1e-8}",
    "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1",
    "actor_rollout_ref.actor.strategy=fsdp2 actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
    "actor_rollout_ref.actor.policy_loss.loss_mode=gspo algorithm.adv_estimator=rloo",
    "ray_kwargs.ray_init.num_cpus=null +ray_kwargs.ray_init.object_store_memory=100000000 "
    "+ray_kwargs.ray_init.address=local",
    "data.val_files=[${data.train_files},${data.train_files}] data.train_max_samples=32",
    "[quickstart_ar] actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64",
]


@pytest.mark.parametrize("line", WHOLE)
def test_what_works_is_not_refused(bases, monkeypatch, line):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    name, overrides, _ = parse(line)
    assert bases.refused(*overrides, name=name) is None


def test_overlong_rows_are_counted_where_verl_filters_them_out(bases, tmp_path, caplog):
    rows = good_rows()
    for row in rows[:5]:
        row["prompt"][0]["content"] = "1+" * 40
    write_jsonl(rows, tmp_path / "rows.jsonl")
    files = f"data.train_files={tmp_path}/rows.jsonl"
    assert bases.refused(files, "data.filter_overlong_prompts=true") is None
    assert f"{tmp_path}/rows.jsonl: 5 rows have prompts of more than 16 tokens and are left out" in caplog.text
    error = bases.refused(files, "data.filter_overlong_prompts=true", "data.train_batch_size=32")
    assert error.key == "data.train_batch_size" and "has 27 rows for it (5 are left out as too long)" in str(error)
    error = bases.refused(files)
    assert "row 0" in str(error) and "data.filter_overlong_prompts=true to leave such rows out" in str(error)


def test_of_very_much_text_the_longest_prompts_are_counted(bases, tmp_path, monkeypatch):
    rows = good_rows()
    rows[20]["prompt"][0]["content"] = "1+" * 40
    write_jsonl(rows, tmp_path / "rows.jsonl")
    monkeypatch.setattr(prompt_checks, "MOST_CHARACTERS", 100)
    assert "rows.jsonl, row 20" in str(bases.refused(f"data.train_files={tmp_path}/rows.jsonl"))


def test_a_scorer_of_the_users_own_may_do_without_task_and_ground_truth(bases, tmp_path):
    rows = good_rows()
    for row in rows:
        row["data_source"], row["reward_model"]["ground_truth"] = "mine", None
        del row["extra_info"]["task"]
    write_jsonl(rows, tmp_path / "rows.jsonl")
    scorer = "reward.custom_reward_function.path=tests/e2e/varied_reward.py"
    assert bases.refused(f"data.train_files={tmp_path}/rows.jsonl", scorer) is None
    assert "mine" in str(bases.refused(f"data.train_files={tmp_path}/rows.jsonl"))


def test_an_unforeseen_error_names_the_section(bases, monkeypatch):
    def fails(config):
        raise AttributeError("'int' object has no attribute 'get'\nsecond line")

    monkeypatch.setattr(validation, "CHECKS", (validation.Check("trainer.save_freq", fails),))
    error = bases.refused()
    assert (error.key, error.value) == ("trainer.save_freq", 16)
    assert "AttributeError: 'int' object has no attribute 'get'" in str(error) and len(str(error).splitlines()) == 1


def test_a_run_is_checked_once_by_hydras_callback_before_verl_reads_it(bases, monkeypatch, capsys):
    calls = []
    check = validation.Check("trainer", lambda config: calls.append(config.trainer.total_epochs))
    monkeypatch.setattr(validation, "CHECKS", (check,))
    monkeypatch.setattr(validation.RunChecks, "passed", None)
    config = bases.config("quickstart", [])
    validation.RunChecks().on_job_start(config)
    assert config.actor_rollout_ref.actor.preflight is True and calls == [100]
    config.trainer.total_epochs = 7  # changed after the check
    assert config.actor_rollout_ref.actor.preflight is True and calls == [100, 7]
    monkeypatch.setattr(validation, "CHECKS", (validation.Check("trainer", refuse),))
    with pytest.raises(SystemExit) as ended:
        validation.RunChecks().on_job_start(bases.config("quickstart", []))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "maskgrpo_plugin: trainer.x=1 is not usable; of two lines\n"


def refuse(config):
    """A check that refuses every config in two lines."""
    raise OptionError("trainer.x", 1, "of two\nlines")


def test_counts(outcomes, broken_rows, capsys):
    counts, slowest = {}, 0.0
    for section, line in SETTINGS:
        refused, _, seconds = outcomes(line)
        tried, good = counts.get(section, (0, 0))
        counts[section], slowest = (tried + 1, good + refused), max(slowest, seconds)
    errors = [broken_rows(name) for name in ROWS]
    counts["rows"] = (len(errors), sum(error is not None for error in errors))
    tried, good = (sum(count[n] for count in counts.values()) for n in (0, 1))
    with capsys.disabled():
        shown = ", ".join(f"{section} {good_here} of {all_here}" for section, (all_here, good_here) in counts.items())
        print(f"\nbroken configs refused: {good} of {tried} ({shown}); the slowest took {slowest:.2f} s")
    assert tried >= 250 and good >= 0.95 * tried
