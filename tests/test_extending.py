"""The recipes of docs/extending.md, run as they stand there, in a folder that knows nothing of this repository."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import forked_python
import pytest

from maskgrpo_plugin.extensions import GROUP

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"^# ([\w./-]+\.(?:py|yaml|toml))$", re.MULTILINE)
BLOCKS = BLOCK.findall((ROOT / "docs" / "extending.md").read_text())
FILES = {NAME.search(text).group(1): text for language, text in BLOCKS if language != "bash"}
RUNS = [
    shlex.split(command)
    for language, text in BLOCKS
    if language == "bash"
    for command in text.replace("\\\n", " ").splitlines()
    if "main_ppo" in command
]
EXTENSIONS = ["my_method.py", "modeling_mine.py", "my_sampler.py", "my_reward.py", "my_image_reward.py"]

LOOK = Path(__file__).parent / "extending_look.py"


def python(*arguments, cwd, timeout=300, **environment):
    """Run Python in a folder, with the package of this repository."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [*forked_python.command(), "-W", "ignore", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "PLUGIN": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the document's files."""
    folder = tmp_path_factory.mktemp("outside")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def found(folder, tiny_run, tiny_digits):
    """What a process that imports verl and nothing of the recipes finds there; see extending_look.py. It also leaves
    the recipes' data and checkpoint in the folder.
    """
    runs = json.dumps([run[3:] for run in RUNS])
    result = python(LOOK, runs, tiny_run, tiny_digits, cwd=folder, MASKGRPO_EXTENSIONS=",".join(EXTENSIONS))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_document_names_all_files_of_the_recipes():
    assert {"my_configs/method/mine.yaml", "my_configs/my_run.yaml", "configuration_mine.py"} <= set(FILES)
    assert set(EXTENSIONS) <= set(FILES) and len(RUNS) == 4


def test_the_method(found):
    assert found["noisy"] == [[5, 6, 9, 9, 9]]  # the prompt stays, the answer and the hidden tail are masked
    assert found["scored"] == [[False, False, True, True, False]]
    assert found["loss"] == pytest.approx((-2 + 0.480453 / 0.4 - 1) / 2, abs=1e-5)
    assert found["largest"] == pytest.approx(0.693147, abs=1e-5)
    assert found["advantages"] == [[-1, -1], [0, 0], [2, 2], [0, 0], [0, 0]]


def test_the_model(found):
    assert found["model"] == "MineModel" and found["family"] == "mine"
    assert found["user"] in found["stops"] and len(found["stops"]) == 3
    assert found["reward_ends"] == sorted(found["stops"])  # rewards end an answer where sampling and training do
    assert found["padding"] < 1e-5 and found["both_directions"] > 1e-3


def test_the_sampler(found):
    assert found["sequences"] == [[4, 2, 2, 2]]
    assert found["reveal_step"] == [[-1, 2, 0, 1]]
    assert found["drawn_alone"] == found["drawn_together"]


def test_the_rewards(found):
    assert found["near"] == {"score": 1.0, "acc": 0.0, "number": 0.5, "nearness": 0.5}
    assert found["text"]["score"] == 0.0
    assert found["weighted"]["score"] == 0.5
    assert found["colour"] == [0.0, 0.25]


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_the_commands_pass_the_checks_of_a_run(found, number):
    assert found["runs"][number] is True


@pytest.mark.parametrize(
    ("key", "own", "ours"),
    [
        ("algorithm.estimation.estimator", "half", "maskgrpo"),
        ("algorithm.adv_estimator", "median", "leave_one_out"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "soft_clip", "tracerl"),
        ("actor_rollout_ref.rollout.sampler.name", "margin", "semi_autoregressive"),
        ("reward.weights.nope", "near_sum", "gsm8k"),
        ("reward.image.scorers.nope.kind", "colour", "clip"),
        ("actor_rollout_ref.model.path", "mine", "llada"),
        ("algorithm.estimation.options.level", "0.01 to 1", "7"),
        ("reward.image.scorers.colour.options.power", "0.1 to 10", "70"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused_with_what_is_allowed(found, key, own, ours):
    message = found["refused"][key]
    assert message.startswith(f"{key}=") and own in message and ours in message, message


def test_a_method_file_without_its_first_line_is_refused(found):
    assert "must begin with `# @package _global_`" in found["refused"]["method"]


def test_the_entry_point_is_of_the_group_that_is_loaded():
    group, module = re.search(r'entry-points."(.+)"\]\n\w+ = "(\w+)"', FILES["pyproject.toml"]).groups()
    assert group == GROUP and f"{module}.py" in FILES


def test_an_unknown_method_ends_with_the_list_of_names(tmp_path):
    command = ["-m", "verl.trainer.main_ppo", "--config-dir", ROOT / "configs", "--config-name", "quickstart"]
    result = python(*command, "method=nope", "hydra.run.dir=hydra", cwd=tmp_path)
    message = result.stderr[result.stderr.index("Could not find 'method/nope'") :]
    names = {file.stem for file in (ROOT / "configs" / "method").glob("*.yaml")}
    assert result.returncode and names == set(re.findall(r"^\t(\w+)$", message, re.MULTILINE)), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_run_from_outside_finds_them_in_all_its_processes(folder, found):
    small = [
        "data.train_batch_size=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.n=4",
        "extensions=[my_method,modeling_mine.py,my_sampler.py,my_reward.py]",  # a module of the folder, and files
        "trainer.test_freq=2",
        "trainer.val_before_train=false",
        "trainer.total_training_steps=2",
        "hydra.run.dir=hydra",
        "+ray_kwargs.ray_init.include_dashboard=false",
        f"+ray_kwargs.ray_init.runtime_env.py_executable='{forked_python.for_ray()}'",
    ]
    result = python(
        *RUNS[-1][1:], *small, cwd=folder, timeout=900, VERL_FILE_LOGGER_PATH="log.jsonl", HYDRA_FULL_ERROR="1"
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0 and "Traceback" not in output, output[-6000:]
    steps = [json.loads(line)["data"] for line in (folder / "log.jsonl").read_text().splitlines()]
    first, last = steps[0], steps[1]
    # method: estimator and loss in the training workers, advantage in the trainer
    assert first["actor/level_1/largest_log_ratio"] == 0.0 < last["actor/level_2/largest_log_ratio"]
    assert 0.2 < first["actor/level_1/masked_share"] < 0.8
    assert "actor/kl_loss" not in first
    # sampler and model on the rollout server, the reward in its worker, in training and in validation
    assert first["rollout/requests"] == 16 and first["rollout/model_calls"] % 8 == 0
    assert first["reward/score"] == pytest.approx(first["reward/number"] + first["reward/nearness"])
    assert first["reward/reward_failed"] == 0.0
    assert any(key.startswith("val-") and "nearness" in key for key in last), sorted(last)
    saved = folder / "runs" / "quickstart" / "checkpoints" / "global_step_2" / "actor" / "huggingface"
    assert json.loads((saved / "config.json").read_text())["model_type"] == "mine"
