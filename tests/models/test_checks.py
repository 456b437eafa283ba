"""The model section is checked by what the checkpoint's class and family say of themselves."""

import pytest
import torch
from omegaconf import OmegaConf

import maskgrpo_plugin  # noqa: F401
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.checks import check_model, linear_layer_names
from maskgrpo_plugin.models.llada import LLaDAConfig
from maskgrpo_plugin.models.mmada import MMadaConfig


def run(folder, model=None, data=None):
    return OmegaConf.create(
        {
            "actor_rollout_ref": {
                "model": {
                    "path": str(folder),
                    "model_type": "masked_diffusion",
                    "tokenizer_path": None,
                    "override_config": {},
                    "lora_rank": 0,
                    "target_modules": "all-linear",
                }
                | (model or {})
            },
            "data": {"max_prompt_length": 16, "max_response_length": 16} | (data or {}),
        }
    )


def refused(config):
    with pytest.raises(OptionError) as error:
        check_model(config)
    return error.value.key, str(error.value)


def test_a_checkpoint_that_fits_passes(tiny_run):
    check_model(run(tiny_run / "model"))
    check_model(run("some-owner/some-model"))
    check_model(run(tiny_run / "model_ar", {"model_type": "language_model"}))


@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        ({"path": "/nowhere/model"}, "path", "does not exist"),
        ({"model_type": "language_model"}, "path", "model_type=masked_diffusion"),
        ({"override_config": {"mask_token_id": 5000}}, "override_config.mask_token_id", "checkpoint's vocabulary"),
        (
            {"lora_rank": 4, "target_modules": ["q_proj", "o_proj"]},
            "target_modules",
            r"\['o_proj'\] is not usable; a block has q_proj, k_proj, v_proj, attn_out, ff_proj, up_proj, ff_out",
        ),
    ],
)
def test_what_cannot_work_is_named_by_its_key(tiny_run, model, key, message):
    config = run(tiny_run / "model", model)
    with pytest.raises(OptionError, match=message) as error:
        check_model(config)
    assert error.value.key == f"actor_rollout_ref.model.{key}"


def test_an_autoregressive_checkpoint_is_refused_with_the_types_that_are_registered(tiny_run):
    key, message = refused(run(tiny_run / "model_ar"))
    assert key == "actor_rollout_ref.model.path"
    assert "'llama' checkpoint; masked_diffusion needs model_type llada or mmada" in message


def test_rows_longer_than_the_models_positions_are_refused(tiny_run):
    key, message = refused(run(tiny_run / "model", data={"max_prompt_length": 4000}))
    assert key == "data.max_response_length" and "positions" in message


@pytest.mark.parametrize("config", [LLaDAConfig(), MMadaConfig(weight_tying=True)])
def test_linear_layers_are_found_without_the_models_memory(config):
    names = linear_layer_names(config)
    assert names == ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]
    assert torch.empty(0).device.type == "cpu"
