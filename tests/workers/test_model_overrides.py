"""A run's `override_config` with a mapping, on a tiny Lumina-DiMOO checkpoint, from the command line to the family."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import ranks
from omegaconf import OmegaConf
from small_tokenizer import make_tokenizer
from transformers import AutoConfig
from verl.utils.config import omega_conf_to_dataclass

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.checks import check_model
from maskgrpo_plugin.models.families import load_family
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM
from maskgrpo_plugin.workers.rollout.server import DiffusionServer

TOKENS = ["<image>", "</image>", "<answer>", "</answer>", "<newline>", "<uncondition>"]
TOKENS += ["<system>", "</system>", "<user>", "</user>"]
KEY = "actor_rollout_ref.model.override_config"
QUESTION = [{"role": "user", "content": "is this"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of random weights, whose config names the system prompt of one task."""
    folder = tmp_path_factory.mktemp("dimoo")
    tokenizer = make_tokenizer(*TOKENS)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    config = LLaDAConfig(
        d_model=16,
        n_heads=2,
        n_layers=1,
        mlp_hidden_size=16,
        vocab_size=len(tokenizer) + 32,
        embedding_size=len(tokenizer) + 32,
        mask_token_id=3,
        codebook_size=32,
        num_vq_tokens=4,
        system_prompts={"text_to_image": "draw"},
    )
    torch.manual_seed(0)
    LLaDAModelLM(config).save_pretrained(folder)
    return folder


def run_config(checkpoint, *overrides):
    return ranks.compose_config(
        checkpoint,
        f"actor_rollout_ref.model.path={checkpoint}",
        "actor_rollout_ref.rollout.load_format=auto",
        *overrides,
    )


def system_prompt(family):
    ids = family.understanding([0, 1, 2, 3], QUESTION, 2).prompt_ids
    return " ".join(family.tokenizer.convert_ids_to_tokens(ids[: ids.index(family.token_id("<user>"))]))


def test_a_system_prompt_of_the_command_line_reaches_checks_workers_and_servers(checkpoint):
    config = run_config(checkpoint, f"+{KEY}.system_prompts.understanding='what is'")
    check_model(config)
    model = config.actor_rollout_ref.model
    section = omega_conf_to_dataclass(model)
    both = {"text_to_image": "draw", "understanding": "what is"}
    assert section.hf_config.system_prompts == both
    assert section.override_config["system_prompts"] == {"understanding": "what is"}
    server = DiffusionServer(config.actor_rollout_ref.rollout, model, 0)
    for family in (server.family, load_family(model, section.tokenizer)):
        assert family.name == "dimoo" and family.config.system_prompts == both
        assert system_prompt(family) == "<system> what is </system>"


def test_ids_of_special_tokens_reach_the_family(checkpoint):
    config = run_config(checkpoint)
    OmegaConf.update(config, f"{KEY}.special_token_ids", {"</answer>": 7}, force_add=True)  # as from a config file
    check_model(config)
    model = config.actor_rollout_ref.model
    section = omega_conf_to_dataclass(model)
    assert section.hf_config.special_token_ids == {"</answer>": 7}
    assert load_family(model, section.tokenizer).stop_token_ids == (2, 7)


def test_a_plain_value_in_place_of_a_mapping_is_refused(checkpoint):
    with pytest.raises(OptionError, match=f"{KEY}.system_prompts='what' is not usable; allowed: a mapping"):
        check_model(run_config(checkpoint, f"+{KEY}.system_prompts=what"))


def test_the_checkpoint_that_a_run_saves_has_the_prompts(checkpoint, tmp_path):
    model = run_config(checkpoint, f"+{KEY}.system_prompts.understanding=look").actor_rollout_ref.model
    omega_conf_to_dataclass(model).hf_config.save_pretrained(tmp_path)
    saved = AutoConfig.from_pretrained(tmp_path)
    assert saved.system_prompts == {"text_to_image": "draw", "understanding": "look"}
