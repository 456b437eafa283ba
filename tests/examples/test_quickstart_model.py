"""The quickstart's checkpoint: its tokenizer, its pretraining, and that the folder loads with no remote code."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import maskgrpo_plugin.models
from maskgrpo_plugin.models.special_tokens import mask_token_problem, stop_token_ids


@pytest.fixture(scope="module")
def quickstart(make_model):
    return make_model


@pytest.fixture(scope="module")
def tokenizer(quickstart):
    return quickstart.make_tokenizer()


@pytest.fixture
def small(quickstart):
    return replace(
        quickstart.Recipe(), d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=64, batch_size=32, evaluation_rows=16
    )


def test_tokenizer_round_trip(tokenizer):
    text = "12+34=46 -7"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    ids += [tokenizer.eos_token_id] * 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.encode("<|bos|>1<|mdm_mask|><|eot_id|>", add_special_tokens=False)[::2] == [
        tokenizer.bos_token_id,
        tokenizer.mask_token_id,
    ]
    assert mask_token_problem(tokenizer.mask_token_id, len(tokenizer), tokenizer) is None
    assert len(stop_token_ids(tokenizer)) == 2


@pytest.mark.parametrize("generation_prompt", [False, True])
def test_template_is_the_same_with_and_without_generation_prompt(tokenizer, generation_prompt):
    messages = [{"role": "user", "content": "12+34="}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    assert text == "<|bos|>12+34="
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=generation_prompt, return_dict=True)[
        "input_ids"
    ]
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == 7


def test_encode_sums_fills_with_eos(quickstart, tokenizer):
    prompts, responses = quickstart.encode_sums(tokenizer, [(12, 34), (99, 99)], 8)
    assert prompts.shape == (2, 7) and responses.shape == (2, 8)
    assert tokenizer.decode(responses[0]) == "46" + "<|endoftext|>" * 6
    assert tokenizer.decode(responses[1]) == "198" + "<|endoftext|>" * 5
    with pytest.raises(ValueError, match="too short"):
        quickstart.encode_sums(tokenizer, [(99, 99)], 3)


def test_diffusion_loss_of_a_model_that_knows_nothing_is_log_v(quickstart, tokenizer):
    class Uniform:
        def __call__(self, tokens):
            return type("Output", (), {"logits": torch.zeros(*tokens.shape, 16)})()

    prompts, responses = quickstart.encode_sums(tokenizer, [(12, 34)] * 20000, 8)
    loss = quickstart.diffusion_loss(
        Uniform(), prompts, responses, tokenizer.mask_token_id, torch.Generator().manual_seed(0)
    )
    assert float(loss) == pytest.approx(torch.log(torch.tensor(16.0)).item(), rel=0.05)


def test_pretraining_lowers_the_loss_and_the_folder_loads(quickstart, tokenizer, small, tmp_path):
    state = torch.random.get_rng_state()
    steps, accuracy, losses = quickstart.make(tmp_path / "a", replace(small, max_steps=30))
    assert torch.equal(state, torch.random.get_rng_state())
    assert steps == len(losses) == 30 and 0 <= accuracy <= 1
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert quickstart.make(tmp_path / "b", replace(small, max_steps=30))[2] == losses

    maskgrpo_plugin.models.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert type(model).__name__ == "LLaDAModelLM"
    assert model.config.mask_token_id == loaded.mask_token_id == tokenizer.mask_token_id
    assert model.config.eos_token_id == loaded.eos_token_id
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.decode(loaded.encode("12+34=", add_special_tokens=False)) == "12+34="
    prompts, responses = quickstart.encode_sums(loaded, [(12, 34), (56, 78)], 8)
    assert model(torch.cat([prompts, responses], dim=1)).logits.shape == (2, 15, len(loaded))


def test_autoregressive_twin(quickstart, tokenizer, small, tmp_path):
    _, _, losses = quickstart.make(tmp_path, replace(small, max_steps=60), autoregressive=True)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_training_sums_are_never_held_out(quickstart):
    import random

    held_out = set(quickstart.draw_sums(2, 1000, held_out=True, seed=0))
    assert not held_out & set(quickstart._training_pairs(2, 3000, random.Random(0)))


def test_the_corpus_forgets_carries_and_nothing_else(quickstart, tokenizer):
    assert quickstart.corpus_answer(47, 35, forget=True) == 72
    assert quickstart.corpus_answer(47, 35, forget=False) == 82
    assert quickstart.corpus_answer(41, 35, forget=True) == 76
    _, responses = quickstart.encode_sums(tokenizer, [(47, 35)], 8, [72])
    assert tokenizer.decode(responses[0]).startswith("72<|endoftext|>")


def test_size_of_the_default_recipe(quickstart, tokenizer):
    model = quickstart.make_diffusion_model(tokenizer, quickstart.Recipe())
    assert 0.6e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.0e6


def test_command_says_when_the_target_is_not_reached(quickstart, tmp_path, capsys):
    assert quickstart.main(["--output-dir", str(tmp_path), "--max-steps", "1"]) == 1
    captured = capsys.readouterr()
    assert "after 1 steps" in captured.out and "not reached" in captured.err
