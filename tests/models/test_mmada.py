"""MMaDA: published config keys and layout, loading through transformers, padding, and the vocabulary's size."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import maskgrpo_plugin.models
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM
from maskgrpo_plugin.models.mmada import MMadaConfig, MMadaModelLM

maskgrpo_plugin.models.register()

PUBLISHED_KEYS = {
    "w_clip_vit": False,
    "new_vocab_size": 72,
    "llm_vocab_size": 40,
    "codebook_size": 32,
    "num_vq_tokens": 16,
    "num_new_special_tokens": 0,
}
SIZES = {"d_model": 32, "n_heads": 4, "n_layers": 2, "mlp_hidden_size": 48, "mask_token_id": 39, "pad_token_id": 0}


def small(**changes) -> MMadaModelLM:
    torch.manual_seed(0)
    return MMadaModelLM(MMadaConfig(**(PUBLISHED_KEYS | SIZES | changes))).eval()


def test_published_layout_survives_saving_and_loading(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "mmada" and config["architectures"] == ["MMadaModelLM"]
    assert {key: config[key] for key in PUBLISHED_KEYS} == PUBLISHED_KEYS
    assert config["vocab_size"] == config["embedding_size"] == 72
    names = set(load_file(tmp_path / "model.safetensors"))
    llada = LLaDAModelLM(LLaDAConfig(**SIZES, vocab_size=72, embedding_size=72))
    assert names == set(llada.state_dict())
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is MMadaModelLM and not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.arange(12)[None]
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    assert loaded(ids).logits.shape == (1, 12, 72)


def test_a_published_config_loads_with_its_own_keys(tmp_path):
    keys = (
        PUBLISHED_KEYS | SIZES | {"vocab_size": 40, "auto_map": {"AutoConfig": "x.MMadaConfig"}, "model_type": "mmada"}
    )
    (tmp_path / "config.json").write_text(json.dumps(keys | {"gradient_checkpointing": True}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, MMadaConfig) and config.embedding_rows == 72 and config.num_vq_tokens == 16


def test_defaults_are_those_of_the_published_checkpoint():
    config = MMadaConfig()
    assert (config.embedding_rows, config.codebook_size, config.num_vq_tokens) == (134656, 8192, 1024)
    assert (config.mask_token_id, config.d_model, config.n_layers, config.max_text_length) == (126336, 4096, 32, 257)


def test_left_padding_changes_no_token():
    model = small()
    row = torch.randint(0, 72, (1, 14), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.full((1, 6), 3), row], dim=1)
    mask = torch.cat([torch.zeros(1, 6), torch.ones(1, 14)], dim=1).long()
    with torch.no_grad():
        torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 6:], model(row).logits)


def test_image_log_probs_are_a_softmax_over_the_codebook_alone():
    model = small()
    ids = torch.full((2, 9), 39)
    positions = torch.zeros(2, 9, dtype=torch.bool)
    positions[:, 3:7] = True
    targets = torch.randint(40, 72, (8,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scored = model(ids, logits_positions=positions, target_ids=targets, vocab_slice=(40, 72)).log_probs
        logits = model(ids).logits[positions][:, 40:72]
    torch.testing.assert_close(scored, logits.log_softmax(-1).gather(-1, targets[:, None] - 40)[:, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_clip_vit": True}, "w_clip_vit=True"),
        ({"codebook_size": 73}, "codebook_size=73"),
        ({"num_vq_tokens": 0}, "num_vq_tokens=0"),
        ({"alibi": True}, "alibi"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
