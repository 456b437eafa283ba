"""Every config that is shipped composes and passes the checks of a run's start, with a small checkpoint put in."""

import re
import sys
from pathlib import Path

import pytest
from family_models import save_checkpoint
from omegaconf import OmegaConf
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent / "workers"))
import ranks

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.validation import preflight

CONFIGS = Path(__file__).parents[1] / "configs"
PARTS = ("cpu", "maskgrpo_base", "mmada_8b")  # what others are made of
RUNS = sorted(
    file.stem
    for file in CONFIGS.glob("*.yaml")
    if file.stem not in PARTS and not file.stem.startswith(("sft_", "dpo_"))
)
SCORER = f"{Path(__file__).parent}/e2e/brightness.py:Brightness"


def small(folder, model, data="data"):
    """Overrides that put a small model and its data into a config."""
    return [
        f"actor_rollout_ref.model.path={folder}/{model}",
        f"data.train_files={folder}/{data}/train.parquet",
        f"data.val_files={folder}/{data}/validation.parquet",
        "ray_kwargs.ray_init.num_cpus=100",
        "++ray_kwargs.ray_init.num_gpus=8",
        "trainer.device=cpu",
    ]


@pytest.fixture(scope="module")
def small_block_model(tiny_run, tmp_path_factory):
    """A block-causal checkpoint with the tiny run's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    return save_checkpoint("sdar", tmp_path_factory.mktemp("block") / "model", tokenizer)


@pytest.mark.parametrize("name", RUNS)
def test_old_log_probabilities_are_of_batches_like_the_updates(name):
    """A GPU's products in 16 bits depend on the size of a batch; in equal ones the first ratio is exactly one."""
    settings = ranks.compose_config("", name=name, folder_key=None).actor_rollout_ref
    size = settings.actor.ppo_micro_batch_size_per_gpu
    assert settings.rollout.log_prob_micro_batch_size_per_gpu == size
    assert settings.ref.log_prob_micro_batch_size_per_gpu in (size, None)


@pytest.mark.parametrize("name", RUNS)
def test_a_shipped_config_passes_with_a_small_checkpoint(tiny_run, tiny_digits, small_block_model, name):
    plain = ranks.compose_config("", name=name, folder_key=None)
    if plain.reward.reward_manager.name == "maskgrpo_image":
        scorers = OmegaConf.to_container(plain.reward.image.scorers, resolve=False)
        overrides = [
            *small(tiny_digits, "model"),
            f"actor_rollout_ref.rollout.image.tokenizer_path={tiny_digits}/vq",
            *(f"reward.image.scorers.{scorer}=null" for scorer in scorers),
            f"+reward.image.scorers.bright={{factory: '{SCORER}'}}",
            "data.max_prompt_length=16",
            "data.max_response_length=17",
        ]
    else:
        is_diffusion = plain.actor_rollout_ref.model.model_type == "masked_diffusion"
        overrides = small(tiny_run, "model" if is_diffusion else "model_ar")
        if name.endswith("_mmu"):
            overrides = small(tiny_digits, "model", data="data_mmu")
        if plain.actor_rollout_ref.rollout.get("sampler", {}).get("name") == "block_causal":
            overrides[0] = f"actor_rollout_ref.model.path={small_block_model}"
        if re.search(r"_\d+b_|_mini_", name):
            length = plain.data.max_response_length // (64 if plain.data.max_response_length > 1000 else 4)
            overrides += ["data.max_prompt_length=32", f"data.max_response_length={length}"]
            if steps := plain.actor_rollout_ref.rollout.sampler.options.get("steps"):
                overrides += [f"actor_rollout_ref.rollout.sampler.options.steps={steps // 4}"]
            if (block := plain.actor_rollout_ref.rollout.sampler.options.get("block_length", 0)) and block > length:
                overrides += [f"actor_rollout_ref.rollout.sampler.options.block_length={block // 4}"]
    config = ranks.compose_config("", *overrides, name=name, folder_key=None)
    assert preflight(config)
    if name.startswith("llada_8b") or name == "mmada_8b_mmu":
        assert config.algorithm.estimation.mu == 12 and config.actor_rollout_ref.rollout.n == 6


@pytest.mark.parametrize(("option", "value"), [("blocks_from", "response"), ("block_length", 2)])
def test_the_sampler_of_a_run_counts_blocks_as_training_does(tiny_run, small_block_model, option, value):
    overrides = [f"actor_rollout_ref.model.path={small_block_model}", *small(tiny_run, "model")[1:]]
    overrides += [f"actor_rollout_ref.rollout.sampler.options.{option}={value}"]
    config = ranks.compose_config("", *overrides, name="quickstart_block", folder_key=None)
    with pytest.raises(OptionError, match=rf"sampler\.options\.{option}='?{value}'?.*training counts blocks"):
        preflight(config)


def test_sampled_positions_of_a_block_causal_model_are_a_block_s_at_most(tiny_run, small_block_model):
    overrides = [f"actor_rollout_ref.model.path={small_block_model}", *small(tiny_run, "model")[1:], "method=justgrpo"]
    options = "actor_rollout_ref.rollout.sampler.options"
    overrides += ["actor_rollout_ref.rollout.sampler.name=block_causal", f"{options}.block_length=null"]
    overrides += [f"{options}.steps=null", f"+{options}.ordering=sequential"]
    config = ranks.compose_config("", *overrides, name="quickstart_block", folder_key=None)
    with pytest.raises(OptionError, match=r"estimation\.options\.sampled=8 .* at most 4, a block"):
        preflight(config)
    overrides += ["algorithm.estimation.options.sampled=4"]
    assert preflight(ranks.compose_config("", *overrides, name="quickstart_block", folder_key=None))


@pytest.mark.parametrize("task", ["gsm8k", "math", "countdown", "sudoku", "code"])
def test_the_text_configs_hold_the_published_hyper_parameters(task):
    config = ranks.compose_config("", name=f"llada_8b_{task}", folder_key=None)
    actor, model, estimation = (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.model,
        config.algorithm.estimation,
    )
    assert (actor.optim.lr, actor.optim.weight_decay, actor.optim.clip_grad) == (3e-6, 0.1, 0.2)
    assert list(actor.optim.betas) == [0.9, 0.99]
    assert (actor.clip_ratio_low, actor.clip_ratio, actor.clip_ratio_high) == (0.2, 0.2, 0.2)
    assert (actor.kl_loss_coef, actor.use_kl_loss, actor.kl_loss_type) == (0.01, True, "low_var_kl")
    options = estimation.options
    assert (estimation.mu, options.gamma, options.remasking) == (12, 0.6, "ar_like")
    assert (model.lora_rank, model.lora_alpha, config.actor_rollout_ref.rollout.n) == (128, 64, 6)
