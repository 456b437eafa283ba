"""The model section is checked by what the checkpoint's class and family say of themselves."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import maskgrpo_plugin  # noqa: F401
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.checks import check_model, linear_layer_names
from maskgrpo_plugin.models.llada import LLaDAConfig
from maskgrpo_plugin.models.mmada import MMadaConfig
from maskgrpo_plugin.models.registry import MODELS
from maskgrpo_plugin.models.weight_files import MissingWeightsError


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
        (
            {"override_config": {"attn_implementation": "flex_attention"}},
            "override_config.attn_implementation",
            "blocks",
        ),
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
    assert f"'llama' checkpoint; masked_diffusion needs model_type {' or '.join(sorted(MODELS))}" in message
    assert {"llada", "mmada", "Dream", "a2d-qwen3", "lladamoe"} <= set(MODELS)


def test_rows_longer_than_the_models_positions_are_refused(tiny_run):
    key, message = refused(run(tiny_run / "model", data={"max_prompt_length": 4000}))
    assert key == "data.max_response_length" and "positions" in message


@pytest.mark.parametrize("config", [LLaDAConfig(), MMadaConfig(weight_tying=True)])
def test_linear_layers_are_found_without_the_models_memory(config):
    names = linear_layer_names(config)
    assert names == ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]
    assert torch.empty(0).device.type == "cpu"


def changed_copy(source, target, **config):
    """The checkpoint of `source` with other values in its config.json."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    published = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(published))
    return target


def without_weights(source, target, prefix):
    """The checkpoint of `source` without the weights whose names begin with `prefix`."""
    changed_copy(source, target)
    weights = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_layers": 99}, r"lacks \d+ of \d+ parameters: model\.transformer\.blocks\.2\."),
        ({"n_layers": 1}, r"further layers than the config has: model\.transformer\.blocks\.1\."),
        ({"d_model": 64}, r"another shape in the checkpoint: .*\(.*32.*\) there, \(.*64.*\) by the config"),
        ({"mlp_hidden_size": 32}, r"ff_proj\.weight is \(64, 32\) there, \(32, 32\) by the config"),
    ],
)
def test_weights_that_are_not_the_configs_are_refused_by_name(tiny_run, tmp_path, config, message):
    folder = changed_copy(tiny_run / "model", tmp_path / "model", **config)
    with pytest.raises(OptionError, match=message) as error:
        check_model(run(folder))
    assert error.value.key == "actor_rollout_ref.model.path"
    with pytest.raises(OptionError, match=message) as error:
        check_model(run(tiny_run / "model", {"override_config": config}))
    assert error.value.key == "actor_rollout_ref.model.override_config"


def test_missing_torn_and_absent_weight_files_are_named(tiny_run, tmp_path):
    lacking = without_weights(tiny_run / "model", tmp_path / "lacking", "model.transformer.blocks.1.q_proj")
    assert "blocks.1.q_proj.weight" in refused(run(lacking))[1]
    torn = changed_copy(tiny_run / "model", tmp_path / "torn")
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[:-100])
    assert f"is torn: it holds {len(whole) - 100} bytes of {len(whole)}" in refused(run(torn))[1]
    (torn / "model.safetensors").write_bytes(whole[:20])
    assert "torn (20 bytes)" in refused(run(torn))[1]
    (torn / "model.safetensors").unlink()
    assert "holds no weights" in refused(run(torn))[1]
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (torn / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names model-00001-of-00002.safetensors, which is not there" in refused(run(torn))[1]
    (torn / "model.safetensors.index.json").unlink()
    (torn / "pytorch_model.bin").write_bytes(b"")
    check_model(run(torn))  # a pickle is not read on the driver


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_layers": 3}, r"lacks \d+ parameters: model\.transformer\.blocks\.2\."),
        ({"mlp_hidden_size": 32}, r"ff_out\.weight is \(32, 64\) there, \(32, 32\) by the config"),
    ],
)
def test_a_model_is_never_loaded_with_made_up_weights(tiny_run, tmp_path, config, message):
    folder = changed_copy(tiny_run / "model", tmp_path / "model", **config)
    with pytest.raises(MissingWeightsError, match=message):
        AutoModelForCausalLM.from_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(tiny_run / "model").num_parameters() > 0
    loaded, info = AutoModelForCausalLM.from_pretrained(tiny_run / "model", output_loading_info=True)
    assert loaded.num_parameters() > 0 and not info["missing_keys"]


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_run, tmp_path):
    folder = changed_copy(tiny_run / "model", tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra_{n}>" for n in range(5000)])
    tokenizer.save_pretrained(folder)
    key, message = refused(run(tiny_run / "model", {"tokenizer_path": str(folder)}))
    assert key == "actor_rollout_ref.model.tokenizer_path" and "tokens outside the checkpoint's embedding" in message


@pytest.mark.parametrize(
    ("targets", "fits"),
    [
        ("all-linear", True),
        (r".*\.(q_proj|k_proj)", True),
        (["q_proj", "blocks.0.ff_proj"], True),
        ("nope", False),
        ("q_proj", False),
        ([], False),
        (["q_proj", "blocks.9.ff_proj"], False),
    ],
)
def test_lora_targets_are_those_that_peft_finds(tiny_run, targets, fits):
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    try:
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
        found = {name for name, _ in adapted.named_parameters() if "lora_A" in name}
        assert fits == (bool(found) and targets != ["q_proj", "blocks.9.ff_proj"])
    except ValueError:
        assert not fits
    config = run(tiny_run / "model", {"lora_rank": 2, "target_modules": targets})
    if fits:
        check_model(config)
    else:
        assert refused(config)[0] == "actor_rollout_ref.model.target_modules"
