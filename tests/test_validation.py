"""Wrong configs end at once on the driver with the key's name, its value and what is allowed."""

import json
import subprocess
import sys
from pathlib import Path

import forked_python
import pytest
import verl  # noqa: F401
from verl.utils.config import omega_conf_to_dataclass

sys.path.insert(0, str(Path(__file__).parent / "workers"))
from ranks import compose_config as config

from maskgrpo_plugin.config import EstimationConfig
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.validation import preflight
from maskgrpo_plugin.workers.checks import required_ray_cpus

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["quickstart", "quickstart_ar"])
def test_the_shipped_configs_pass(tiny_run, name):
    assert preflight(config(tiny_run, name=name))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.max_response_length=10", "actor_rollout_ref.rollout.sampler.options.block_length"),
        ("actor_rollout_ref.rollout.sampler.options.steps=1", "actor_rollout_ref.rollout.sampler.options.steps"),
        (
            "actor_rollout_ref.rollout.sampler.options.ordering=best",
            "actor_rollout_ref.rollout.sampler.options.ordering",
        ),
        ("actor_rollout_ref.rollout.sampler.ordering=best", "actor_rollout_ref.rollout.sampler.options.ordering"),
        ("actor_rollout_ref.rollout.sampler.options.stepz=8", "actor_rollout_ref.rollout.sampler.options.stepz"),
        ("+actor_rollout_ref.rollout.sampler.options.schedule=linear", "sampler.options.schedule"),
        ("actor_rollout_ref.rollout.sampler.options.temperature=0.5", "sampler.options.temperature"),
        ("+actor_rollout_ref.rollout.sampler.stepz=8", "actor_rollout_ref.rollout.sampler.stepz"),
        ("actor_rollout_ref.rollout.sampler.name=greedy", "actor_rollout_ref.rollout.sampler.name"),
        ("actor_rollout_ref.rollout.temperature=-1", "actor_rollout_ref.rollout.temperature"),
        ("algorithm.estimation.gamma=1.0", "algorithm.estimation.gamma"),
        ("algorithm.estimation.gamma=0", "algorithm.estimation.gamma"),
        ("algorithm.estimation.mu=0", "algorithm.estimation.mu"),
        ("algorithm.estimation.estimator=elbow", "algorithm.estimation.estimator"),
        ("algorithm.estimation.mask_sharing=all", "algorithm.estimation.mask_sharing"),
        ("+algorithm.estimation.nu=3", "algorithm.estimation.nu"),
        ("algorithm.adv_estimator=unknown", "algorithm.adv_estimator"),
        ("algorithm.use_kl_in_reward=true", "algorithm.use_kl_in_reward"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=unknown", "actor_rollout_ref.actor.policy_loss.loss_mode"),
        ("actor_rollout_ref.actor.strategy=fsdp", "actor_rollout_ref.actor.strategy"),
        ("+actor_rollout_ref.model.override_config.mask_token_id=5", "mask_token_id"),
        ("+actor_rollout_ref.model.override_config.mask_token_id=5000", "mask_token_id"),
        ("actor_rollout_ref.model.path=/nowhere/model", "actor_rollout_ref.model.path"),
        ("actor_rollout_ref.rollout.name=transformers", "actor_rollout_ref.rollout.name"),
        ("actor_rollout_ref.rollout.calculate_log_probs=true", "actor_rollout_ref.rollout.calculate_log_probs"),
        ("data.train_files=/nowhere/train.parquet", "data.train_files"),
        ("data.max_prompt_length=4000", "data.max_response_length"),
        ("+reward.weights.gsm8k.style=1.0", "reward.weights"),
        ("+reward.sandbox.isolate=true", "reward.sandbox"),
        ("reward.timeout_s=0", "reward.timeout_s"),
        ("ray_kwargs.ray_init.num_cpus=2", "ray_kwargs.ray_init.num_cpus"),
        ("ray_kwargs.ray_init.num_gpus=0", "ray_kwargs.ray_init.num_gpus"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=5", "actor_rollout_ref.actor.ppo_mini_batch_size"),
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=100", "actor_rollout_ref.actor.ppo_micro_batch_size"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(tiny_run, override, key):
    with pytest.raises(OptionError) as error:
        preflight(config(tiny_run, override))
    assert error.value.key.startswith(key) or key in error.value.key
    assert error.value.key in str(error.value)


def test_an_autoregressive_checkpoint_under_the_diffusion_engine_is_refused(tiny_run):
    with pytest.raises(OptionError, match="'llama' checkpoint"):
        preflight(config(tiny_run, f"actor_rollout_ref.model.path={tiny_run}/model_ar"))


def test_a_diffusion_checkpoint_under_the_autoregressive_engine_is_refused(tiny_run):
    with pytest.raises(OptionError, match="model_type=masked_diffusion"):
        preflight(config(tiny_run, f"actor_rollout_ref.model.path={tiny_run}/model", name="quickstart_ar"))


def test_lora_targets_that_llada_lacks_are_refused(tiny_run):
    overrides = ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.target_modules=[q_proj,o_proj]"]
    with pytest.raises(OptionError, match="o_proj"):
        preflight(config(tiny_run, *overrides))


def test_layered_summon_under_lora_needs_servers_that_load_the_base(tiny_run):
    overrides = ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.rollout.layered_summon=true"]
    with pytest.raises(OptionError, match="load_format=auto"):
        preflight(config(tiny_run, *overrides))
    assert preflight(config(tiny_run, *overrides, "actor_rollout_ref.rollout.load_format=auto"))
    assert preflight(config(tiny_run, *overrides, "actor_rollout_ref.model.lora.merge=true"))


def test_a_checkpoint_without_a_mask_token_is_refused(tiny_run, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in (tiny_run / "model").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    published = json.loads((copy / "config.json").read_text())
    published["mask_token_id"] = None
    (copy / "config.json").write_text(json.dumps(published))
    preflight(config(tiny_run, f"actor_rollout_ref.model.path={copy}"))  # the tokenizer names one
    tokens = json.loads((copy / "tokenizer_config.json").read_text())
    del tokens["mask_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(tokens))
    with pytest.raises(OptionError, match="mask_token_id"):
        preflight(config(tiny_run, f"actor_rollout_ref.model.path={copy}"))


def test_the_cpu_count_grows_with_ranks_and_workers(tiny_run):
    base = required_ray_cpus(config(tiny_run))
    assert required_ray_cpus(config(tiny_run, "trainer.n_gpus_per_node=2")) == base + 4
    assert required_ray_cpus(config(tiny_run, "reward.num_workers=3")) == base + 2


@pytest.mark.parametrize(("key", "value"), [("mu", 1.5), ("level_cap", 0), ("prompt_mask_ratio", 1.0)])
def test_estimation_values_are_checked_where_they_are_built(key, value):
    with pytest.raises(OptionError, match=key):
        EstimationConfig(**{key: value})


@pytest.mark.slow
def test_the_driver_stops_in_seconds_with_one_line(tiny_run):
    command = [*forked_python.command(), "-m", "verl.trainer.main_ppo", "--config-name", "quickstart"]
    result = subprocess.run(
        [*command, f"quickstart_dir={tiny_run}", "algorithm.estimation.gamma=1.5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert "maskgrpo_plugin: algorithm.estimation.gamma=1.5 is not usable; allowed: the open interval" in result.stderr
    assert "Traceback" not in result.stderr


def test_image_rewards_are_checked_and_their_cpus_counted(tiny_run):
    image = "reward.reward_manager.name=maskgrpo_image"
    with pytest.raises(OptionError, match=r"reward\.image=None"):
        preflight(config(tiny_run, image))
    with pytest.raises(OptionError, match=r"reward\.image\.scorers\.x\.kind='sharpness'"):
        preflight(config(tiny_run, image, "+reward.image.scorers.x.kind=sharpness"))
    scorer = f"{ROOT}/tests/rewards/images/image_helpers.py:BrightnessScorer"
    good = config(
        tiny_run, image, f"+reward.image.scorers.x.factory='{scorer}'", "+reward.image.scorers.x.num_cpus=1.5"
    )
    assert preflight(good)
    assert required_ray_cpus(good) == required_ray_cpus(config(tiny_run)) + 2


def test_old_keys_of_the_estimation_work_with_a_warning(tiny_run, caplog):
    run = config(tiny_run, "algorithm.estimation.gamma=0.7", "algorithm.estimation.train_on_tail=true")
    assert preflight(run)
    assert "algorithm.estimation.gamma: the key is now algorithm.estimation.options.gamma" in caplog.text
    assert "algorithm.estimation.train_on_tail: the key is now algorithm.estimation.canvas=full" in caplog.text
    estimator = omega_conf_to_dataclass(run.algorithm.estimation).build()
    assert (estimator.gamma, estimator.canvas) == (0.7, "full")


def test_an_option_of_another_estimator_is_refused_by_its_full_key(tiny_run):
    overrides = ["algorithm.estimation.estimator=diffu_grpo", "algorithm.estimation.options.gamma=0.7"]
    with pytest.raises(OptionError, match=r"algorithm\.estimation\.options\.gamma=0\.7 .* it has mu, canvas, prompt"):
        preflight(config(tiny_run, *overrides))


def test_a_methods_file_sets_the_published_values_over_any_run(tiny_run):
    run = config(tiny_run, "method=tracerl")
    assert preflight(run)
    actor, estimation = run.actor_rollout_ref.actor, run.algorithm.estimation
    assert (run.algorithm.adv_estimator, actor.policy_loss.loss_mode) == ("zscore", "tracerl")
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.clip_ratio, actor.optim.lr) == (False, 0.01, 0.2, 1e-6)
    assert (estimation.estimator, estimation.mu, dict(estimation.options)) == (
        "trajectory",
        1,
        {"shrink": 8, "end_tokens": 0},
    )


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "method").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_method_passes_the_checks(tiny_run, file):
    assert preflight(config(tiny_run, f"method={file.stem}"))


def test_an_unknown_method_is_refused_with_the_list(tiny_run):
    with pytest.raises(Exception, match=r"(?s)Could not find 'method/nope'.*Available options.*coupled_grpo.*tracerl"):
        config(tiny_run, "method=nope")
