"""Checkpoints of every family as a run names them: what is checked, what works, and what is refused with which line."""

import json

import pytest
import torch
from family_models import BIDIRECTIONAL, EXPERTS, FAMILIES, save_checkpoint
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import maskgrpo_plugin  # noqa: F401
from maskgrpo_plugin.diffusion.samplers import check_attention
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.checks import check_model
from maskgrpo_plugin.models.dream import DreamTokenizer
from maskgrpo_plugin.models.experts import expert_parts
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.models.registry import block_length_of

BLOCKS = sorted(set(FAMILIES) - set(BIDIRECTIONAL))


@pytest.fixture(scope="module")
def folders(tiny_run, tmp_path_factory):
    """A checkpoint of each family with the quickstart's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    root = tmp_path_factory.mktemp("families")
    return {name: save_checkpoint(name, root / name, tokenizer) for name in FAMILIES}


def run(folder, **model):
    section = {"path": str(folder), "model_type": "masked_diffusion", "tokenizer_path": None, "override_config": {}}
    section |= {"lora_rank": 0, "target_modules": "all-linear"} | model
    data = {"max_prompt_length": 16, "max_response_length": 16}
    return OmegaConf.create({"actor_rollout_ref": {"model": section}, "data": data})


def test_dreams_published_tokenizer_is_read_without_its_code(folders, tmp_path):
    """As published: vocabulary and merges, a class in a file that is not there, the mask token among those added."""
    words = {"h": 0, "e": 1, "l": 2, "o": 3, "he": 4, "ll": 5, "hell": 6, "hello": 7, "Ġ": 8, "<|endoftext|>": 9}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\nhell o\n")
    added = {"10": {"content": "<|mask|>", "special": True}, "9": {"content": "<|endoftext|>", "special": True}}
    settings = {"tokenizer_class": "DreamTokenizer", "mask_token": "<|mask|>", "eos_token": "<|endoftext|>"}
    settings |= {
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "pad_token": "<|endoftext|>",
    }
    for token in added.values():
        token |= {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": added}))
    (tmp_path / "config.json").write_bytes((folders["dream"] / "config.json").read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is DreamTokenizer
    assert tokenizer("hello<|mask|>hell he<|endoftext|>")["input_ids"] == [7, 10, 6, 8, 4, 9]
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (10, 9, 9)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_that_fits_passes(folders, name):
    check_model(run(folders[name], lora_rank=4))
    check_model(run(folders[name], lora_rank=4, target_modules=["q_proj", "o_proj"]))


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_lora_targets_are_refused_with_those_of_the_family(folders, name):
    with pytest.raises(OptionError, match=r"\['ff_proj'\] is not usable; a block has q_proj, k_proj, v_proj, o_proj, "):
        check_model(run(folders[name], lora_rank=4, target_modules=["q_proj", "ff_proj"]))


@pytest.mark.parametrize("name", [*BLOCKS, "dream"])
def test_a_sampler_for_another_attention_is_refused(folders, name):
    length = block_length_of(AutoConfig.from_pretrained(folders[name]))
    wrong, right = ("emerge", "block_causal") if length else ("block_causal", "semi_autoregressive, ")
    with pytest.raises(OptionError, match=f"name='{wrong}'.*(block by block|both directions).*allowed are {right}"):
        check_attention(wrong, length)
    check_attention("block_causal" if length else "semi_autoregressive", length)


def test_another_block_length_than_the_checkpoints_is_a_warning(folders, caplog):
    check_model(run(folders["a2d_qwen2"], override_config={"block_size": 32}))
    assert not caplog.records
    check_model(run(folders["sdar"], override_config={"block_size": 8}))
    assert "was made for blocks of 4 tokens, not 8" in caplog.text


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("sdar", "block_size", 0), ("a2d_qwen2", "block_size", "x"), ("fast_dllm_v2", "bd_size", 2.5)],
)
def test_a_block_length_that_is_none_is_refused_by_its_key(folders, name, key, value):
    with pytest.raises(OptionError, match=rf"override_config\.{key}='?{value}'? .*whole numbers from 1"):
        check_model(run(folders[name], override_config={key: value}))


def test_a_folder_with_code_of_its_own_is_refused_in_one_line(folders, tmp_path):
    for file in folders["sdar"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    published = json.loads((tmp_path / "config.json").read_text())
    code = {"model_type": "novel", "auto_map": {"AutoModelForCausalLM": "modeling_novel.NovelForCausalLM"}}
    (tmp_path / "config.json").write_text(json.dumps(published | code))
    with pytest.raises(
        OptionError, match=r"it is a 'novel' checkpoint; .* or sdar or .*; code in the folder is not run"
    ):
        check_model(run(tmp_path))


def test_flash_attention_is_refused_for_blocks(folders):
    flash = {"override_config": {"attn_implementation": "flash_attention_2"}}
    check_model(run(folders["dream"], **flash))
    with pytest.raises(
        OptionError, match=r"flash_attention_2.*allowed: auto, sdpa, eager: the model attends in blocks of 4"
    ):
        check_model(run(folders["sdar"], **flash))


def test_flex_attention_is_refused_where_it_cannot_be_trained(folders, monkeypatch):
    flex = {"override_config": {"attn_implementation": "flex_attention"}}
    with pytest.raises(OptionError, match="allowed: auto, sdpa, eager: flex attention has no backward pass on"):
        check_model(run(folders["sdar"], **flex))
    with pytest.raises(OptionError, match="flex attention is for models that attend in blocks"):
        check_model(run(folders["dream"], **flex))
    for name in ("sdar", "dream"):
        check_model(run(folders[name], override_config={"attn_implementation": "auto"}))
    monkeypatch.setattr("maskgrpo_plugin.models.checks.get_device_name", lambda: "cuda")
    check_model(run(folders["sdar"], **flex))


@pytest.mark.parametrize("name", EXPERTS)
def test_checkpoints_name_every_expert(folders, name, tmp_path):
    config = AutoConfig.from_pretrained(folders[name])
    weights = load_file(folders[name] / "model.safetensors")
    numbers = {int(key.split(".experts.")[1].split(".")[0]) for key in weights if ".mlp.experts." in key}
    assert numbers == set(range(config.num_experts))
    for file in folders[name].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lost = next(key for key in weights if key.endswith("experts.5.up_proj.weight"))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OptionError, match=f"lacks 1 of .* parameters: {lost}"):
        check_model(run(tmp_path))


@pytest.mark.parametrize("name", EXPERTS)
def test_the_parts_of_a_layers_experts_are_those_of_the_checkpoint(folders, name):
    stored = load_file(folders[name] / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folders[name])
    parts = {}
    for parameter, values in model.named_parameters():
        parts |= expert_parts(parameter, values.data)
    assert parts.keys() == {key for key in stored if ".mlp.experts." in key}
    assert all(torch.equal(stored[key], values) for key, values in parts.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mask_token_is_the_tokenizers_where_the_config_names_none(folders, name):
    assert json.loads((folders[name] / "config.json").read_text())["mask_token_id"] is None
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    family = build_family(AutoConfig.from_pretrained(folders[name]), tokenizer)
    assert family.mask_token_id == tokenizer.mask_token_id
    expected = {"dream": "dream", "sdar": "sdar", "sdar_moe": "sdar", "fast_dllm_v2": "fast_dllm_v2"}
    expected |= {"lladamoe": "llada_moe", "llada2_moe": "llada_moe"}
    assert family.name == expected.get(name, "text")


@pytest.mark.parametrize("name", EXPERTS)
def test_routers_compute_in_float32_whatever_the_model_is_in(folders, name):
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.bfloat16)
    routers = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    hidden = torch.randn(5, model.config.hidden_size, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    for router in routers:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = router(hidden)
        logits = found[0] if isinstance(found, tuple) else found
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, hidden.float() @ router.weight.float().T, atol=1e-6, rtol=0)
    if name == "llada2_moe":
        assert all(router.e_score_correction_bias.dtype == torch.float32 for router in routers)
        assert all(router.e_score_correction_bias.any() for router in routers)
