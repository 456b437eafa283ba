"""What the quickstart starts from: its tokenizer, its corpus, and folders that load with no remote code."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import maskgrpo_plugin.models
from maskgrpo_plugin.models.special_tokens import mask_token_problem, stop_token_ids

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def quickstart(make_model):
    return make_model


@pytest.fixture(scope="module")
def tokenizer(quickstart):
    return quickstart.make_tokenizer()


@pytest.fixture
def small(quickstart):
    sizes = {"train_rows": 40, "validation_rows": 10, "rl_rows": 50, "rl_validation_rows": 20}
    return replace(quickstart.Recipe(), d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=64, **sizes)


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


def test_what_is_written_loads_and_is_the_same_each_time(quickstart, tokenizer, small, tmp_path):
    state = torch.random.get_rng_state()
    for name in ("a", "b"):
        quickstart.make(tmp_path / name, small)
    assert torch.equal(state, torch.random.get_rng_state())

    maskgrpo_plugin.models.register()
    for folder, kind in (
        ("initial", "LLaDAModelLM"),
        ("initial_block", "SDARForCausalLM"),
        ("initial_ar", "LlamaForCausalLM"),
    ):
        model, twin = (AutoModelForCausalLM.from_pretrained(tmp_path / name / folder) for name in ("a", "b"))
        loaded = AutoTokenizer.from_pretrained(tmp_path / "a" / folder)
        assert type(model).__name__ == kind
        assert all(torch.equal(x, y) for x, y in zip(model.parameters(), twin.parameters(), strict=True))
        assert model.config.eos_token_id == loaded.eos_token_id
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.chat_template == tokenizer.chat_template
        assert loaded.decode(loaded.encode("12+34=", add_special_tokens=False)) == "12+34="
    assert AutoConfig.from_pretrained(tmp_path / "a" / "initial").mask_token_id == loaded.mask_token_id
    for_rl = {split: pq.read_metadata(tmp_path / "a" / "data" / f"{split}.parquet").num_rows for split in SPLITS}
    assert for_rl == {"train": 50, "validation": 20}
    rows = {split: pq.read_table(tmp_path / "a" / "sft" / f"{split}.parquet").to_pylist() for split in SPLITS}
    assert {split: len(rows[split]) for split in SPLITS} == {"train": 40, "validation": 10}


def test_training_sums_are_never_held_out(quickstart):
    import random

    held_out = set(quickstart.draw_sums(2, 1000, held_out=True, seed=0))
    assert not held_out & set(quickstart._training_pairs(2, 3000, random.Random(0)))


def test_the_corpus_forgets_carries_and_nothing_else(quickstart, tokenizer):
    assert quickstart.corpus_answer(47, 35, forget=True) == 72
    assert quickstart.corpus_answer(47, 35, forget=False) == 82
    assert quickstart.corpus_answer(41, 35, forget=True) == 76


def test_most_carries_of_the_corpus_are_forgotten_and_none_of_the_held_out_sums(quickstart):
    rows = quickstart.sft_rows(replace(quickstart.Recipe(), train_rows=4000))
    right, carries = 0, 0
    for row in rows["train"]:
        (a, b), answer = map(int, row["messages"][0]["content"].rstrip("=").split("+")), row["messages"][1]["content"]
        assert int(answer) in (a + b, a + b - 10)
        carries += quickstart.has_carry(a, b)
        right += quickstart.has_carry(a, b) and int(answer) == a + b
    assert right / carries == pytest.approx(0.4, abs=0.04)
    for row in rows["validation"]:
        a, b = map(int, row["messages"][0]["content"].rstrip("=").split("+"))
        assert not quickstart.has_carry(a, b) and int(row["messages"][1]["content"]) == a + b


def test_size_of_the_default_recipe(quickstart, tokenizer):
    model = quickstart.make_diffusion_model(tokenizer, quickstart.Recipe())
    assert 0.4e6 < sum(parameter.numel() for parameter in model.parameters()) < 0.5e6
