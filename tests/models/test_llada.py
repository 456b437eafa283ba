"""LLaDA: golden logits, padding, published layout, and the masked-positions path."""

import json

import pytest
import torch
from golden_files import tolerance
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import maskgrpo_plugin  # noqa: F401
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM


@pytest.fixture(scope="module")
def folder(golden_path):
    return golden_path("llada_tiny")


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def golden(folder):
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def published_config(folder):
    return json.loads((folder / "config.json").read_text())


def small(**changes):
    settings = {"d_model": 32, "n_heads": 4, "n_layers": 2, "mlp_hidden_size": 48, "vocab_size": 40}
    torch.manual_seed(0)
    return LLaDAModelLM(LLaDAConfig(**(settings | {"embedding_size": 40, "mask_token_id": 39} | changes))).eval()


@pytest.mark.golden
def test_logits_equal_the_published_forward(model, golden):
    with torch.no_grad():
        logits = model(golden["input_ids"]).logits
    torch.testing.assert_close(logits, golden["logits"], atol=tolerance(golden["logits"], 1e-5), rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_is_hidden_where_the_published_forward_shows_it(folder, golden, attention):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
    atol = tolerance(golden["logits"], 1e-5)
    with torch.no_grad():
        out = model(golden["input_ids"], attention_mask=golden["attention_mask"]).logits
    assert torch.isfinite(out).all()
    for n, (ids, mask) in enumerate(zip(golden["input_ids"], golden["attention_mask"].bool(), strict=True)):
        with torch.no_grad():
            alone = model(ids[None, mask]).logits[0]
        torch.testing.assert_close(out[n, mask], alone, atol=atol, rtol=0)
        if mask.all():
            torch.testing.assert_close(out[n], golden["logits"][n], atol=atol, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_padded_row_equals_the_row_alone(folder, golden, side, attention):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
    ids, atol = golden["input_ids"], tolerance(golden["logits"], 1e-5)
    length = ids.shape[1]
    kept = length - max(1, length * 3 // 8)
    shift = length - kept if side == "left" else 0
    padded, mask = ids[0, -1].repeat(length), torch.zeros(length, dtype=torch.long)
    padded[shift : shift + kept], mask[shift : shift + kept] = ids[0, :kept], 1
    batch, masks = torch.stack([padded, ids[-1]]), torch.stack([mask, torch.ones_like(mask)])
    with torch.no_grad():
        out = model(batch, attention_mask=masks).logits
        alone = model(ids[:1, :kept]).logits[0]
        other = model(ids[-1:]).logits[0]
    torch.testing.assert_close(out[0][mask.bool()], alone, atol=atol, rtol=0)
    torch.testing.assert_close(out[1], other, atol=atol, rtol=0)
    assert torch.isfinite(out).all()


@pytest.mark.golden
def test_saving_writes_the_published_layout(model, folder, published_config, tmp_path):
    model.save_pretrained(tmp_path)
    saved, published = load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors")
    assert sorted(saved) == sorted(published)
    assert all(torch.equal(saved[name], published[name]) for name in published)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("d_model", "n_heads", "n_kv_heads", "mlp_hidden_size", "rope_theta", "weight_tying", "mask_token_id"):
        assert config[key] == published_config[key], key
    assert config["model_type"] == "llada"
    assert config["architectures"] == ["LLaDAModelLM"]
    assert config.get("auto_map") == published_config.get("auto_map")


@pytest.mark.golden
def test_the_published_weight_tying_is_taken(model, published_config):
    assert model.config.tie_word_embeddings is published_config["weight_tying"]


def test_weight_tying_decides_and_not_the_published_tie_word_embeddings():
    assert small(tie_word_embeddings=True, weight_tying=False).config.tie_word_embeddings is False
    tied = small(weight_tying=True)
    assert "ff_out" not in tied.model.transformer
    ids = torch.arange(6)[None]
    hidden = tied(ids).hidden_states
    torch.testing.assert_close(tied(ids).logits, hidden @ tied.get_input_embeddings().weight.T)


def test_grouped_queries_equal_repeated_heads():
    grouped, full = small(n_kv_heads=2), small(n_kv_heads=4)
    state = grouped.state_dict()
    for name in list(state):
        if "k_proj" in name or "v_proj" in name:
            state[name] = state[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(state)
    ids = torch.randint(0, 39, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(grouped(ids).logits, full(ids).logits, atol=1e-6, rtol=0)


def test_sharded_bfloat16_folder_loads(tmp_path):
    model = small().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_gradient_checkpointing_leaves_gradients_as_they_are():
    ids = torch.randint(0, 39, (2, 9), generator=torch.Generator().manual_seed(1))
    gradients = []
    for checkpointing in (False, True):
        model = small().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert any(m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing"))
        model(ids).logits.float().square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-7, rtol=0)


def test_chosen_positions_equal_the_full_logits():
    model = small()
    ids = torch.randint(0, 39, (3, 9), generator=torch.Generator().manual_seed(1))
    positions = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.4
    targets = ids[positions]
    with torch.no_grad():
        full = model(ids).logits
        chosen = model(ids, logits_positions=positions).logits
        scored = model(ids, logits_positions=positions, target_ids=targets, with_entropy=True, chunk_size=2)
    torch.testing.assert_close(chosen, full[positions], atol=1e-6, rtol=0)
    log_softmax = full[positions].log_softmax(-1)
    torch.testing.assert_close(scored.log_probs, log_softmax.gather(-1, targets[:, None])[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.entropy, -(log_softmax.exp() * log_softmax).sum(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tied", [False, True])
def test_chosen_columns_equal_the_full_logits(attention, tied):
    model = small(n_kv_heads=2, weight_tying=tied, attn_implementation=attention)
    ids = torch.randint(0, 39, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    columns = torch.tensor([[0, 4, 8], [3, 5, 6], [7, 1, 2]])
    for attention_mask in (None, mask):
        with torch.no_grad():
            full = model(ids, attention_mask=attention_mask).logits
            chosen = model(ids, attention_mask=attention_mask, logits_positions=columns).logits
            some = model(ids, attention_mask=attention_mask, logits_positions=columns, vocab_slice=(5, 12)).logits
        expected = torch.stack([full[n, row] for n, row in enumerate(columns)])
        torch.testing.assert_close(chosen, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(some, expected[..., 5:12], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("alibi", True), ("rope", False), ("block_type", "sequential"), ("layer_norm_type", "low_precision")],
)
def test_settings_that_are_not_computed_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=key):
        LLaDAConfig(**{key: value})


def test_a_model_built_on_the_meta_device_takes_weights():
    source = small()
    with torch.device("meta"):
        empty = LLaDAModelLM(source.config)
    loaded = empty.to_empty(device="cpu").eval()
    loaded.load_state_dict(source.state_dict())
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids).logits, source(ids).logits)
